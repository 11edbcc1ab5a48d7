"""The swarm's metrics in simulated runs: whatever the method, the faults and the way of running."""

from __future__ import annotations

from typing import Any

import pytest

from peer.algorithms import ALGORITHMS
from peer.progress import SWARM_FIELDS
from tests.peer.simulator.conftest import Played

EVERY = "evaluation.every=10"


def known(run: Played, peer: str) -> dict[int, dict[str, Any]]:
    """What a peer knew in the end, by the evaluation's step."""
    return {e["step"]: {k: e[k] for k in SWARM_FIELDS} for e in run.of("swarm_metrics", peer)}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_all_peers_know_every_evaluation_whatever_the_method(play: Any, name: str) -> None:
    """Pairwise methods go at their own pace, and still nobody is missing."""
    method = (f"algorithm.name={name}", "topology.graph=complete", "optimizer.lr=0.01")
    run = play("", EVERY, *method)
    for peer in run.outcome.peers:
        means = known(run, peer.id)
        assert means.keys() == {10, 20, 30}
        for step in (10, 20):
            values = [dict(p.evaluations)[step] for p in run.outcome.peers]
            mean = sum(v["suboptimality"] for v in values) / 4
            assert means[step]["metrics"]["suboptimality"] == pytest.approx(mean, rel=1e-12)
            assert means[step]["peers"] == 4
        assert means[30]["metrics"]["suboptimality"] == pytest.approx(sum(run.suboptimality) / 4)
        assert peer.swarm_metrics == means[30]


def test_a_known_loss_leaves_out_the_peers_behind_it(play: Any) -> None:
    """peer-1 to peer-2 of the chain at step 20: metrics share the fate of the step's models."""
    edge = "[[faults.edge]]\nsender = 'peer-1'\nreceiver = 'peer-2'\ndrop = 1.0\nsteps = [20]"
    run = play(edge, EVERY)
    counts = {p.id: [m["peers"] for m in known(run, p.id).values()] for p in run.outcome.peers}
    assert counts == {
        "peer-0": [4, 4, 4],
        "peer-1": [4, 4, 4],
        "peer-2": [4, 2, 4],
        "peer-3": [4, 2, 4],
    }


def test_silent_losses_and_delays_hold_nobody_up(play: Any) -> None:
    faults = ("faults.drop=0.2", "faults.loss=silent", "faults.jitter_s=3", "faults.duplicate=0.3")
    run = play("", "evaluation.every=2", "transport.deadline_s=1", "steps=60", *faults)
    for peer in run.outcome.peers:
        means = known(run, peer.id)
        assert max(means) == 60
        assert {m["peers"] for m in means.values()} <= {1, 2, 3, 4}
        assert sum(m["peers"] == 4 for m in means.values()) > 5


def test_a_peer_that_dies_and_comes_back_is_missing_meanwhile(play: Any) -> None:
    crash = "[[faults.crash]]\npeer = 'peer-1'\nat_step = 25\nrejoin_after_s = 40.0"
    run = play(crash, EVERY, "steps=200", "coordinator.lease_s=5")
    for peer in ("peer-0", "peer-2", "peer-3"):
        counts = {step: mean["peers"] for step, mean in known(run, peer).items()}
        assert (counts[10], counts[20], counts[200]) == (4, 4, 4)
        assert 3 in counts.values()
    assert known(run, "peer-1")[200]["peers"] == 4


@pytest.mark.parametrize(
    "settings",
    [(), ("faults.drop=0.2",), ("algorithm.name=swarmsgd", "topology.graph=ring")],
    ids=["relaysgd", "losses", "swarmsgd"],
)
def test_stacked_peers_know_the_same(play: Any, settings: tuple[str, ...]) -> None:
    alone, stacked = (play("", EVERY, *settings, stacked=how) for how in ("off", "on"))
    for peer in alone.outcome.peers:
        here, there = known(alone, peer.id), known(stacked, peer.id)
        assert here.keys() == there.keys() == {10, 20, 30}
        for step, mean in here.items():
            assert there[step]["peers"] == mean["peers"]
            assert there[step]["metrics"] == pytest.approx(mean["metrics"])
