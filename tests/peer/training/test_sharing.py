"""What of a model peers share: chosen by patterns, told apart by the fingerprint."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from coordinator.admission import have_one_layout
from peer.training.flat import FlatModel
from relayswarm.config import ShareConfig, parse
from relayswarm.errors import ConfigError


class Adapted(nn.Module):
    """A frozen linear layer with a low-rank adapter beside it, and a head."""

    def __init__(self, base: float = 1.0, rank: int = 2, classes: int = 3) -> None:
        super().__init__()
        self.base = nn.Linear(4, 4, dtype=torch.bfloat16)
        nn.init.constant_(self.base.weight, base)
        nn.init.constant_(self.base.bias, 0)
        self.base.requires_grad_(requires_grad=False)
        self.lora_a = nn.Parameter(torch.zeros(4, rank))
        self.lora_b = nn.Parameter(torch.ones(rank, 4))
        self.head = nn.Linear(4, classes)


class Normed(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def flat(model: nn.Module, *include: str, exclude: tuple[str, ...] = ()) -> FlatModel:
    return FlatModel(model, ShareConfig(include=include or ("*",), exclude=exclude))


def names(model: FlatModel) -> list[str]:
    return [spec.name for spec in model.layout]


class TestChoice:
    def test_all_that_is_trained_unless_something_is_said(self) -> None:
        model = flat(Normed())
        assert model.shared_names is None
        assert model.local_tensors().keys() == {"1.num_batches_tracked"}

    def test_what_is_included_is_in_the_vector_and_the_rest_is_local(self) -> None:
        model = flat(Adapted(), "lora_*")
        assert names(model) == ["lora_a", "lora_b"]
        assert model.vector.shape == (16,)
        assert model.local_tensors().keys() == {"head.weight", "head.bias"}
        assert model.shared_names == {"lora_a", "lora_b"}
        assert len(model.parameters) == 4

    def test_what_is_excluded_is_local_though_it_is_included(self) -> None:
        statistics = ("*.running_mean", "*.running_var")
        model = flat(Normed(), exclude=(*statistics, "2.*"))
        assert names(model) == ["0.weight", "0.bias", "1.weight", "1.bias"]
        local = {"1.running_mean", "1.running_var", "1.num_batches_tracked", "2.weight", "2.bias"}
        assert model.local_tensors().keys() == local
        assert model.parameters_end == model.vector.numel()

    def test_writing_the_vector_leaves_local_parts_alone(self) -> None:
        module = Normed()
        before = module[2].weight.detach().clone()
        flat(module, exclude=("2.*",)).vector.fill_(7)
        assert torch.equal(module[2].weight, before)
        assert module[0].weight.unique().tolist() == [7]

    def test_a_tied_tensor_goes_by_any_of_its_names(self) -> None:
        for share in ({"include": ("1.weight",)}, {"include": ("0.weight",)}):
            module = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
            module[1].weight = module[0].weight
            model = FlatModel(module, ShareConfig(**share))
            assert names(model) == ["0.weight"]
            assert model.shared_names == {"0.weight", "1.weight"}

    def test_local_parts_may_have_another_dtype(self) -> None:
        module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double())
        with pytest.raises(ConfigError, match=r"1.weight.*float64 .* name one of them in share.ex"):
            FlatModel(module)
        assert flat(module, exclude=("1.*",)).vector.dtype == torch.float32


class TestRefusals:
    @pytest.mark.parametrize(
        ("share", "message"),
        [
            (
                {"include": ["lora_c"]},
                r"share.include = 'lora_c': matches no .*; .* lora_b, lora_a",
            ),
            ({"include": ["*", "*.lora"]}, r"share.include = '\*.lora': .* lora_"),
            ({"include": ["base.*"]}, "share.include = 'base.*': matches frozen parameters"),
            ({"exclude": ["haed.*"]}, r"share.exclude = 'haed.*': matches no .* head\."),
            ({"exclude": ["*"]}, r"share.exclude = \['\*'\]: leaves no trainable parameter"),
            ({"include": ["head.*"], "exclude": ["head*"]}, "leaves no trainable parameter"),
        ],
    )
    def test_patterns(self, share: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            FlatModel(Adapted(), ShareConfig(**share))

    def test_of_the_config(self) -> None:
        with pytest.raises(ConfigError, match=r"share.include = \[\]"):
            parse("", ["share.include=[]"])
        with pytest.raises(ConfigError, match=r"share.inclide = .*did you mean 'include'"):
            parse("", ['share.inclide=["*"]'])


class TestFingerprint:
    def test_covers_names_and_shapes_of_what_is_shared(self) -> None:
        one = flat(Adapted(), "lora_*").fingerprint
        assert flat(Adapted(), "lora_*").fingerprint == one
        assert not have_one_layout(one, flat(Adapted(rank=3), "lora_*").fingerprint)
        assert not have_one_layout(one, flat(Adapted(), "lora_a").fingerprint)

    def test_leaves_out_what_is_local(self) -> None:
        """A head may have as many classes as its site knows."""
        few, many = (flat(Adapted(classes=n), exclude=("head.*",)) for n in (3, 9))
        assert few.fingerprint == many.fingerprint
        whole = [flat(Adapted(classes=n)).fingerprint for n in (3, 9)]
        assert not have_one_layout(*whole)

    @pytest.mark.parametrize("share", [("lora_*",), ()])
    def test_covers_the_values_of_the_frozen_base(self, share: tuple[str, ...]) -> None:
        one, other = (flat(Adapted(base=base), *share).fingerprint for base in (1.0, 1.0078125))
        assert one != other
        assert have_one_layout(one, other)

    def test_leaves_out_a_frozen_part_that_is_excluded(self) -> None:
        one, other = (flat(Adapted(base), exclude=("base.*",)).fingerprint for base in (1.0, 2.0))
        assert one == other
