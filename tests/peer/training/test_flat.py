"""The flat vector: what is in it, where, and what may not happen to it."""

import pytest
import torch
from torch import nn

from peer.training.flat import FlatModel
from relayswarm.errors import ConfigError


class Holder(nn.Module):
    """A module of given tensors: parameters trainable or frozen, buffers."""

    def __init__(self, frozen=(), buffers=(), **parameters: torch.Tensor) -> None:
        super().__init__()
        for name, tensor in parameters.items():
            setattr(self, name, nn.Parameter(tensor, requires_grad=name not in frozen))
        for name, tensor in dict(buffers).items():
            self.register_buffer(name, tensor)


def rows(flat: FlatModel) -> list[tuple]:
    return [(s.name, s.shape, s.offset, s.role) for s in flat.layout]


class TestLayout:
    def test_parameters_come_first_then_float_buffers(self) -> None:
        flat = FlatModel(nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 3)))
        assert rows(flat) == [
            ("0.weight", (2,), 0, "parameter"),
            ("0.bias", (2,), 2, "parameter"),
            ("1.weight", (3, 2), 4, "parameter"),
            ("1.bias", (3,), 10, "parameter"),
            ("0.running_mean", (2,), 13, "buffer"),
            ("0.running_var", (2,), 15, "buffer"),
        ]
        assert (flat.parameters_end, flat.vector.shape) == (13, (17,))
        assert flat.vector.is_contiguous()

    def test_values_are_kept(self) -> None:
        model = nn.Linear(2, 3)
        before = {name: t.clone() for name, t in model.state_dict().items()}
        flat = FlatModel(model)
        assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())
        assert torch.equal(flat.vector[:6], before["weight"].flatten())

    def test_writing_the_vector_writes_the_model_and_back(self) -> None:
        model = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1))
        flat = FlatModel(model)
        flat.vector.copy_(torch.arange(6.0))
        assert model[0].weight.item() == 0
        assert model[1].running_var.item() == 5
        model(torch.tensor([[1.0], [5.0]]))
        assert flat.vector[4].item() == pytest.approx(0.9 * 4 + 0.1 * 1)  # the mean of 0 x + 1
        with torch.no_grad():
            model[0].bias.fill_(7)
        assert flat.vector[1].item() == 7

    def test_frozen_parameters_stay_local(self) -> None:
        model = Holder(frozen=["a"], a=torch.ones(3), b=torch.zeros(2))
        flat = FlatModel(model)
        assert rows(flat) == [("b", (2,), 0, "parameter")]
        assert [p is model.b for p in flat.parameters] == [True]
        flat.vector.fill_(5)
        assert model.a.tolist() == [1, 1, 1]

    def test_tied_parameters_are_stored_once(self) -> None:
        model = nn.ModuleList([nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)])
        model[1].weight = model[0].weight
        flat = FlatModel(model)
        assert rows(flat) == [("0.weight", (2, 2), 0, "parameter")]
        flat.vector.copy_(torch.arange(4.0))
        assert model[1].weight.tolist() == [[0, 1], [2, 3]]
        model[1].weight = nn.Parameter(torch.zeros(2, 2))
        with pytest.raises(ConfigError, match=r"1\.weight"):
            flat.check_views()

    def test_empty_parameters_are_skipped(self) -> None:
        flat = FlatModel(Holder(a=torch.ones(0, 3), b=torch.ones(2)))
        assert [spec.name for spec in flat.layout] == ["b"]
        flat.check_views()

    def test_parameters_in_any_memory_order_become_contiguous_views(self) -> None:
        values = torch.arange(6.0).view(2, 3)
        model = Holder(a=values.t(), b=torch.ones(1).expand(4))
        flat = FlatModel(model)
        assert torch.equal(model.a.detach(), values.t())
        assert model.a.is_contiguous()
        assert flat.vector.tolist() == [0, 3, 1, 4, 2, 5, 1, 1, 1, 1]

    def test_scalars_have_a_place(self) -> None:
        flat = FlatModel(Holder(a=torch.tensor(3.0)))
        assert rows(flat) == [("a", (), 0, "parameter")]

    def test_integer_and_unsaved_buffers_stay_local(self) -> None:
        model = Holder(a=torch.ones(1), buffers={"steps": torch.tensor([4])})
        model.register_buffer("cache", torch.ones(9), persistent=False)
        flat = FlatModel(model)
        assert flat.vector.shape == (1,)
        assert {name: t.tolist() for name, t in flat.local_tensors().items()} == {"steps": [4]}

    def test_part_lays_another_vector_out_like_the_model(self) -> None:
        flat = FlatModel(nn.Linear(2, 1))
        part = flat.part(torch.arange(3.0), flat.layout[0])
        assert part.tolist() == [[0, 1]]


class TestRefusals:
    def test_mixed_dtypes(self) -> None:
        with pytest.raises(ConfigError, match=r"b.*float64 while a is torch.float32"):
            FlatModel(Holder(a=torch.ones(1), b=torch.ones(1, dtype=torch.float64)))

    def test_a_buffer_of_another_dtype(self) -> None:
        with pytest.raises(ConfigError, match="mean") as caught:
            FlatModel(Holder(a=torch.ones(1), buffers={"mean": torch.ones(1).double()}))
        assert caught.value.value == "mean"

    def test_a_frozen_parameter_may_have_another_dtype(self) -> None:
        double = torch.ones(1, dtype=torch.float64)
        assert FlatModel(Holder(frozen=["b"], a=torch.ones(1), b=double)).vector.shape == (1,)

    def test_no_trainable_parameter(self) -> None:
        with pytest.raises(ConfigError, match="no trainable parameter"):
            FlatModel(Holder(frozen=["a"], a=torch.ones(1)))

    def test_complex_parameters(self) -> None:
        with pytest.raises(ConfigError, match="is complex"):
            FlatModel(Holder(a=torch.ones(1, dtype=torch.complex64)))

    def test_parameters_that_share_memory_but_are_not_tied(self) -> None:
        shared = torch.ones(2)
        with pytest.raises(ConfigError, match="shares memory with a"):
            FlatModel(Holder(a=shared, b=shared))

    @pytest.mark.filterwarnings("ignore:Lazy modules")
    def test_lazy_parameters(self) -> None:
        with pytest.raises(ConfigError, match="not initialised"):
            FlatModel(nn.LazyLinear(2))


class TestCheckViews:
    @pytest.mark.parametrize(
        ("breaking", "name"),
        [
            (lambda m: m.to(torch.float64), "0.weight"),
            (lambda m: setattr(m[0], "bias", nn.Parameter(torch.ones(1))), "0.bias"),
            (lambda m: setattr(m[0].weight, "data", torch.ones(1, 2)), "0.weight"),
            (lambda m: setattr(m[1], "running_mean", torch.ones(1)), "1.running_mean"),
            (lambda m: setattr(m[1], "running_var", None), "1.running_var"),
        ],
        ids=["moved", "replaced", "data replaced", "buffer assigned", "buffer removed"],
    )
    def test_a_broken_view_is_named(self, breaking, name: str) -> None:
        model = nn.Sequential(nn.Linear(2, 1), nn.BatchNorm1d(1))
        flat = FlatModel(model)
        flat.check_views()
        breaking(model)
        with pytest.raises(ConfigError, match="moved or replaced") as caught:
            flat.check_views()
        assert caught.value.value == name


class TestFingerprint:
    def of(self, *args, **kwargs) -> int:
        return FlatModel(Holder(*args, **kwargs)).fingerprint

    def test_equal_models_have_equal_ones_whatever_their_values(self) -> None:
        assert self.of(a=torch.ones(2)) == self.of(a=torch.zeros(2))
        assert 0 <= self.of(a=torch.ones(2)) < 2**64

    def test_all_else_tells_models_apart(self) -> None:
        one = torch.ones(2)
        different = [
            self.of(a=one),
            self.of(b=one),
            self.of(a=torch.ones(3)),
            self.of(a=torch.ones(2, 1)),
            self.of(a=one.double()),
            self.of(a=one, b=one.clone()),
            self.of(a=one, b=one.clone(), frozen=["b"]),
            self.of(a=one, b=one.clone(), frozen=["a"]),
            self.of(a=one, b=torch.ones(3), frozen=["b"]),
            self.of(a=one, buffers={"b": torch.ones(2)}),
            self.of(a=one, buffers={"b": torch.tensor([1])}),
        ]
        assert len(set(different)) == len(different)

    def test_untied_and_tied_models_differ(self) -> None:
        tied = nn.ModuleList([nn.Linear(1, 1), nn.Linear(1, 1)])
        tied[1].weight = tied[0].weight
        untied = nn.ModuleList([nn.Linear(1, 1), nn.Linear(1, 1)])
        assert FlatModel(tied).fingerprint != FlatModel(untied).fingerprint


class TestLoad:
    def test_state_dict_and_load_are_inverse(self) -> None:
        one = FlatModel(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
        other = FlatModel(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
        one.vector.copy_(torch.arange(float(len(one.vector))))
        one.module[1].num_batches_tracked.fill_(9)
        other.load(one.state_dict())
        assert torch.equal(one.vector, other.vector)
        assert other.module[1].num_batches_tracked.item() == 9
        other.check_views()

    @pytest.mark.parametrize(
        ("change", "problem"),
        [
            (lambda t: t.pop("bias"), "bias.*is missing"),
            (lambda t: t.update(extra=torch.ones(1)), "extra.*not in this model"),
            (lambda t: t.update(bias=torch.ones(2)), r"bias.*has shape \(2,\), not \(1,\)"),
        ],
    )
    def test_what_does_not_fit_is_named_and_nothing_changed(self, change, problem: str) -> None:
        flat = FlatModel(nn.Linear(1, 1))
        before = flat.vector.clone()
        tensors = {name: t + 1 for name, t in flat.state_dict().items()}
        change(tensors)
        with pytest.raises(ConfigError, match=problem):
            flat.load(tensors)
        assert torch.equal(flat.vector, before)
