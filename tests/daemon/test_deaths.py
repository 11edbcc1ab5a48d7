"""A peer that dies at once (SIGKILL), and one that is started again."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

CHAIN = (
    "task.name=quadratics",
    "topology.graph=chain",
    "peers=4",
    "faults.delay_s=0.03",  # a step takes at least this long, so that there are steps to watch
    "transport.deadline_s=60",
    "coordinator.lease_s=60",
    "evaluation.every=10",
)


def test_neighbours_notice_a_death_at_once_and_go_on_in_a_new_tree(
    daemons: Callable[..., Any],
) -> None:
    swarm = daemons(*CHAIN, "steps=200")
    swarm.until_step(30)
    swarm.peers["peer-1"].send(signal.SIGKILL)
    died = time.monotonic()
    lost = swarm.coordinator.until("member_lost")
    assert (lost["peer"], lost["reason"]) == ("peer-1", "unreachable")
    new = swarm.coordinator.until("topology", lambda event: event["reason"] == "unreachable")
    assert new["members"] == ["peer-0", "peer-2", "peer-3"]
    # Two renewals are to be missed, 2.5 s. On a quiet machine it takes less than 3 s, here other
    # tests' daemons have the processors, too. The lease is 60 s.
    assert time.monotonic() - died < 5
    dead = swarm.peers.pop("peer-1")
    assert dead.exit_code() == -signal.SIGKILL
    finished = swarm.finish()
    for peer in swarm.peers:
        assert finished[peer]["shard"] == int(peer[-1])  # the dead peer's data is nobody's
        steps = swarm.steps(peer)
        assert steps[199]["swarm_size"] == steps[199]["models_counted"] == 3
        assert max(event["wait_s"] for event in steps.values()) < 40
        known = swarm.swarm_metrics(peer)
        assert {step: known[step]["peers"] for step in (10, 20, 200)} == {10: 4, 20: 4, 200: 3}
        waited_s = sum(event["wait_s"] for event in steps.values())
        assert finished[peer]["waited_s"] == pytest.approx(waited_s, abs=1e-3)
        assert finished[peer]["messages_timed_out"] == 0  # nobody waits for who is known to be dead
    for neighbour in ("peer-0", "peer-2"):
        assert "peer-1 cannot be reached" in swarm.peers[neighbour].log
    swarm.coordinator.until("finished")


def test_a_peer_started_again_resumes_its_checkpoint_and_keeps_its_shard(
    daemons: Callable[..., Any],
) -> None:
    swarm = daemons(*CHAIN, "steps=120", "checkpoint.every=10")
    swarm.until_step(30)
    dead = swarm.peers["peer-1"]
    dead.send(signal.SIGKILL)
    assert dead.exit_code() == -signal.SIGKILL
    assert sorted((swarm.directory / "peer-1").glob("checkpoint-*"))
    again = swarm.add("peer-1", "--resume")
    back = swarm.coordinator.until("topology", lambda event: event["reason"] == "restarted")
    assert back["members"] == ["peer-0", "peer-1", "peer-2", "peer-3"]
    finished = swarm.finish()
    assert "resumed from the checkpoint of step" in again.log
    assert "starting from step" in again.log  # the others are further by now
    assert finished["peer-1"]["shard"] == 1
    assert min(swarm.steps("peer-1")) >= 30
    assert all(swarm.steps(peer)[119]["models_counted"] == 4 for peer in swarm.peers)
    assert all(swarm.swarm_metrics(peer)[120]["peers"] == 4 for peer in swarm.peers)


def test_a_join_a_leave_and_a_death_in_quick_succession_cost_no_deadline(
    daemons: Callable[..., Any],
) -> None:
    """Epochs follow each other faster than they take effect, and one still has the dead peer."""
    swarm = daemons(
        *("task.name=quadratics", "topology.graph=random-regular", "data.shards=7"),
        *("faults.delay_s=0.01", "transport.deadline_s=40", "coordinator.lease_s=10"),
        *("peers=6", "steps=200"),
    )
    swarm.until_step(30)
    swarm.add("peer-6")
    swarm.peers.pop("peer-2").send(signal.SIGTERM)
    swarm.peers.pop("peer-4").send(signal.SIGKILL)
    swarm.finish()
    reasons = {event["reason"] for event in swarm.coordinator.events("topology")}
    assert {"left", "joined", "unreachable"} <= reasons
    for peer in swarm.peers:
        steps = swarm.steps(peer)
        assert max(event["wait_s"] for event in steps.values()) < 30
        assert steps[199]["models_counted"] == steps[199]["swarm_size"] == 5
