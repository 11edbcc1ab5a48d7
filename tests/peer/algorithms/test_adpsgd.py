"""AD-PSGD where it differs from SwarmSGD: it computes from the copy as it is when it starts."""

from __future__ import annotations

from fractions import Fraction as F

from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.graphs import build_graph
from peer.algorithms.core import Run
from peer.algorithms.swarmsgd import COPY
from peer.simulator.exact import ExactSwarm, Problem, views
from peer.simulator.links import SeededLink
from peer.simulator.world import World


def swarm_of(name: str, seed: int, **options: object) -> ExactSwarm:
    return ExactSwarm(
        name,
        views(graph=build_graph("ring", 5)),
        Run(6, seed=seed),
        Problem([(F(k),) for k in range(5)], [(F(3 * k % 7),) for k in range(5)]),
        options=options,
        duration_s=lambda i, step: [0.5, 1.0, 4.0][(seed >> (i + step)) % 3],
        world=World(SeededLink(seed)),
    ).run()


@settings(max_examples=15)
@given(st.integers(0, 2**32))
def test_without_turns_it_is_swarmsgd(seed: int) -> None:
    """A peer that begins to compute as soon as it has averaged starts from the same model."""
    one, other = swarm_of("adpsgd", seed), swarm_of("swarmsgd", seed)
    assert one.models == other.models
    copies = [[body.vectors[COPY.name] for body in swarm.bodies] for swarm in (one, other)]
    assert copies[0] == copies[1]


def test_by_hand_with_turns() -> None:
    """Peers at 0 and 8, descending half way to 4 and 0. Peer 0 calls: its gradient step moves it by
    2, the mean is 4: X = 6 and 4. Then peer 1 calls: from 4 it moves by -2 (swarmsgd: from 8, where
    it once started, by -4), the mean is 5: X = 5 and 3 (swarmsgd: 5 and 1)."""
    script = [("peer-0", "peer-1"), ("peer-1", "peer-0")]
    for name, expected in [("adpsgd", [5, 3]), ("swarmsgd", [5, 1])]:
        swarm = ExactSwarm(
            name,
            views(graph=build_graph("chain", 2)),
            Run(1),
            Problem([(F(0),), (F(8),)], [(F(4),), (F(0),)]),
            options={"script": script},
        ).run()
        assert [body.vectors[COPY.name][0] for body in swarm.bodies] == expected
