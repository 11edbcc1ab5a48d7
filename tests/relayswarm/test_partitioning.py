"""Every sample in exactly one shard, none below the least size, the same cut everywhere."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayswarm import partitioning as module
from relayswarm.errors import ConfigError
from relayswarm.partitioning import Partition, partition
from relayswarm.task import Site

LABELS = np.repeat(np.arange(10), 144)


def cut(**site: object) -> Partition:
    return partition(LABELS, Site(**site))


def class_counts(result: Partition) -> np.ndarray:
    return np.array([np.bincount(LABELS[shard], minlength=10) for shard in result.shards])


@given(
    labels=st.lists(st.integers(0, 4), min_size=12, max_size=80),
    shards=st.integers(1, 4),
    alpha=st.one_of(st.none(), st.floats(0.05, 100)),
    seed=st.integers(0, 2**31 - 1),
)
def test_every_sample_is_in_exactly_one_shard(labels, shards, alpha, seed) -> None:
    site = Site(shards=shards, alpha=alpha, seed=seed, min_samples=1)
    result = partition(np.array(labels), site)
    assert len(result.shards) == shards
    assert sorted(np.concatenate(result.shards).tolist()) == list(range(len(labels)))
    assert min(len(shard) for shard in result.shards) >= 1


@given(shards=st.integers(1, 50), seed=st.integers(0, 1000))
def test_even_shards_differ_by_one_sample_at_most(shards: int, seed: int) -> None:
    sizes = [len(shard) for shard in cut(shards=shards, seed=seed).shards]
    assert max(sizes) - min(sizes) <= 1


def test_the_cut_does_not_depend_on_who_asks() -> None:
    first = cut(shard=0, shards=8, alpha=0.1, seed=3)
    last = cut(shard=7, shards=8, alpha=0.1, seed=3)
    assert [s.tolist() for s in first.shards] == [s.tolist() for s in last.shards]


def test_another_seed_gives_another_cut() -> None:
    cuts = {cut(shards=4, alpha=0.5, seed=seed).shards[0].tobytes() for seed in range(5)}
    assert len(cuts) == 5


def test_small_alpha_gives_classes_to_few_shards_and_large_alpha_to_all() -> None:
    even_share = 144 / 8
    few = class_counts(cut(shards=8, alpha=0.05, seed=1))
    assert (few == 0).mean() > 0.5
    many = class_counts(cut(shards=8, alpha=1e6, seed=1))
    assert np.abs(many - even_share).max() <= 2


def test_a_full_shard_gets_nothing_of_later_classes() -> None:
    """So no shard can exceed its even share by more than one class."""
    for seed in range(20):
        sizes = [len(shard) for shard in cut(shards=8, alpha=0.1, seed=seed).shards]
        assert max(sizes) <= 1440 / 8 + 144


def test_a_draw_that_leaves_a_shard_too_small_is_repeated_and_reported() -> None:
    result = next(
        result
        for result in (cut(shards=16, alpha=0.1, seed=seed, min_samples=16) for seed in range(100))
        if result.redraws
    )
    assert min(len(shard) for shard in result.shards) >= 16
    assert result.notes == (
        f"partition redrawn {result.redraws} times until every shard was large enough",
    )
    assert Partition((), 0).notes == ()


def test_too_many_shards_for_the_samples() -> None:
    with pytest.raises(ConfigError, match="they need 1456 of 1440 samples") as caught:
        cut(shards=91, min_samples=16)
    assert caught.value.field == "data.shards"


def test_a_cut_that_is_never_found_names_alpha(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_DRAWS", 20)
    with pytest.raises(ConfigError, match=r"in 20 draws; raise data\.alpha, lower") as e:
        cut(shards=64, alpha=0.01, min_samples=20)
    assert e.value.field == "data.alpha"
