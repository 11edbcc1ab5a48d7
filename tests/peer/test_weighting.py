"""What peers weigh: where it comes from, and what is refused."""

from __future__ import annotations

from math import inf, nan

import pytest

from peer.views import peer_ids
from peer.weighting import check_weighting, require_declared, shards_of, weight_of
from relayswarm.config import parse
from relayswarm.errors import ConfigError

DECLARED = 'data.weighting="declared"'


def test_unless_asked_for_all_weigh_the_same() -> None:
    assert weight_of(parse(""), "peer-3", 77) == 1


def test_samples_weigh() -> None:
    assert weight_of(parse("", ['data.weighting="samples"']), "peer-3", 77) == 77


def test_a_peers_own_word_comes_before_the_configs() -> None:
    config = parse("", [DECLARED, "data.weights.peer-3=2.5"])
    assert weight_of(config, "peer-3", 77) == 2.5
    assert weight_of(config, "peer-3", 77, declared=4) == 4
    assert weight_of(config, "peer-4", 77, declared=4) == 4


def test_who_only_forwards_weighs_nothing() -> None:
    for overrides in ([], [DECLARED], ['data.weighting="samples"']):
        assert weight_of(parse("", overrides), "peer-3", 0, forwards=True) == 0


@pytest.mark.parametrize("weight", [nan, inf, -1.0, 0.0, 1e-300, 1e300])
def test_what_is_no_weight_is_refused_by_name(weight: float) -> None:
    with pytest.raises(ConfigError, match=r"^--weight = .*; give a (number|weight)"):
        require_declared(weight, forwards=False)


def test_a_forwarder_may_declare_nothing_but_0() -> None:
    assert require_declared(0.0, forwards=True) == 0
    with pytest.raises(ConfigError, match="--weight = 2"):
        require_declared(2.0, forwards=True)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([DECLARED, "data.weights.peer-1=0"], "data.weights.peer-1 = 0.0: .*--role forward"),
        (["data.weights.peer-1=2"], "data.weights = .*'uniform'"),
        ([DECLARED, "algorithm.name=dpsgd"], "data.weighting = 'declared': dpsgd .*relaysgd"),
        (['data.forward=["peer-1"]', "algorithm.name=swarmsgd"], "data.forward = .*swarmsgd"),
        (["peers=2", 'data.forward=["peer-0","peer-1"]'], "data.forward = .*none of 2"),
        (
            [DECLARED, "data.weights.peer-1=2", 'data.forward=["peer-1"]'],
            "data.weights.peer-1 = 2.0: .*weighs nothing",
        ),
    ],
)
def test_what_contradicts_itself_is_refused(overrides: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check_weighting(parse("", overrides))


@pytest.mark.parametrize("weight", ["nan", "inf", "-2", "1e300"])
def test_a_config_holds_no_other_weights(weight: str) -> None:
    with pytest.raises(ConfigError, match=r"data\.weights"):
        parse("", [DECLARED, f"data.weights.peer-1={weight}"])


def test_who_declares_nothing_is_told_how() -> None:
    with pytest.raises(ConfigError, match=r"peer-1 does not; start it with --weight"):
        weight_of(parse("", [DECLARED]), "peer-1", 77)
    with pytest.raises(ConfigError, match=r"--weight = 3: .*'samples'"):
        weight_of(parse("", ['data.weighting="samples"']), "peer-1", 77, declared=3)


def test_forwarders_take_no_shard() -> None:
    config = parse("", ["peers=4", 'data.forward=["peer-1"]'])
    assert config.shards == 3
    assert shards_of(config, peer_ids(4)) == {"peer-0": 0, "peer-1": 0, "peer-2": 2, "peer-3": 1}
    assert shards_of(parse("", ["peers=4"]), peer_ids(4)) == {f"peer-{k}": k for k in range(4)}
