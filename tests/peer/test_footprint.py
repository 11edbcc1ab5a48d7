"""What exchanges take: bounds that follow from how peers are built, and counted messages."""

from __future__ import annotations

import pytest

from peer.footprint import Footprint, bits_per_second, footprint
from peer.localswarm.session import lay_out_run
from peer.simulator.traffic import PerStep
from relayswarm.config import parse
from relayswarm.errors import ConfigError

CHAIN, RING = "topology.graph=chain", "topology.graph=ring"
TREES = ("topology.graph=complete", "topology.tree=double-binary-trees")
OVERLAP, TRACKING = "algorithm.overlap=true", "algorithm.name=gradient-tracking"


def of(*settings: str) -> Footprint:
    config = parse("", ("peers=4", *settings))
    return footprint(config, lay_out_run(config))


@pytest.mark.parametrize(
    ("settings", "memory", "mean", "largest"),
    [
        ((CHAIN,), 7, 1.5, 2),  # 3 edges, over which models go both ways
        ((CHAIN, OVERLAP), 8, 1.5, 2),
        ((CHAIN, "algorithm.fallback=counts"), 6, 1.5, 2),
        (("topology.graph=star",), 9, 1.5, 3),
        (TREES, 7, 1.5, 2),
        ((RING, "algorithm.name=dpsgd"), 6, 2, 2),
        ((RING, TRACKING), 14, 4, 4),  # with each model a correction, from three registers
        ((RING, "algorithm.name=d2"), 8, 2, 2),  # from two registers
        ((CHAIN, "algorithm.name=allreduce"), 6, 1.5, 2),
        (("algorithm.name=sgp",), 6, 2, 2),  # two rounds, with two partners in turn
        ((CHAIN, "transport.wire_format=lattice"), 7, 1.5, 2),
    ],
)
def test_memory_and_messages(
    settings: tuple[str, ...], memory: int, mean: float, largest: float
) -> None:
    found = of(*settings)
    assert found.memory_models == memory
    assert (found.sent.mean, found.sent.largest) == (mean, largest)
    assert found.received.mean <= mean  # with overlap those of the last step come to nobody


def test_of_pairs_messages_alone_are_known() -> None:
    found = of("algorithm.name=swarmsgd", RING, "algorithm.quantize=lattice")
    assert found.memory_models is None
    assert 1 < found.sent.mean <= 3  # one as initiator, one for each who calls
    assert found.sent.mean <= found.sent.largest


def test_what_is_not_of_the_exchanges_does_not_matter() -> None:
    faults = ("faults.drop=0.5", "data.alpha=0.1", "task.name=char-lm", "steps=100000")
    assert of(CHAIN) == of(CHAIN, *faults, 'share.exclude=["head.*"]')


def test_transfer_is_that_of_the_busiest_peer() -> None:
    found = Footprint(7, PerStep(1, 2), PerStep(1, 3))
    assert found.transfer_s(1_000, 8_000) == 3


@pytest.mark.parametrize(("text", "rate"), [("100M", 1e8), ("2.5g", 2.5e9), ("9600", 9600)])
def test_rates(text: str, rate: float) -> None:
    assert bits_per_second(text) == rate


@pytest.mark.parametrize("text", ["0", "", "-1M", "fast", "1MB", "inf"])
def test_what_is_no_rate(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--bandwidth = .*: no rate above 0; give bits"):
        bits_per_second(text)
