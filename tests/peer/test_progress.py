from __future__ import annotations

from typing import Any

import pytest

from coordinator.views import lay_out
from peer.progress import Progress
from peer.views import peer_ids, topology_event
from relayswarm.config import RunConfig

CONFIG = RunConfig(peers=3, steps=2)


def step(peer: str, step: int, loss: float | None = 0.5, sent: int = 10) -> dict[str, Any]:
    return {
        "event": "step",
        "peer": peer,
        "step": step,
        "loss": loss,
        "models_counted": 2,
        "swarm_size": 3,
        "bytes_sent": sent,
    }


def finished(peer: str, accuracy: float = 0.9) -> dict[str, Any]:
    metrics = {"accuracy": accuracy}
    return {"event": "peer_finished", "peer": peer, "steps": 2, "metrics": metrics, "shard": 1}


@pytest.fixture
def progress() -> Progress:
    return Progress(CONFIG, peer_ids(3))


def test_who_is_missing_is_told_by_the_coordinator(progress: Progress) -> None:
    assert progress.missing == ["peer-0", "peer-1", "peer-2"]
    members = ["peer-0", "peer-2"]
    progress.observe({"event": "waiting", "present": 2, "needed": 3, "members": members})
    assert progress.missing == ["peer-1"]


def test_a_peer_knows_only_numbers_and_cannot_unsay_them(progress: Progress) -> None:
    progress.observe({"event": "waiting", "present": 1, "needed": 3, "members": ["peer-0"]})
    progress.observe({"event": "waiting", "peer": "peer-0", "present": 1, "needed": 3})
    assert progress.missing == ["peer-1", "peer-2"]
    assert progress.peers["peer-0"].state == "waiting"


def test_steps_done_are_those_of_the_slowest_living_peer(progress: Progress) -> None:
    for event in (step("peer-0", 0), step("peer-0", 1), step("peer-1", 0)):
        progress.observe(event)
    assert progress.steps_done == 0
    progress.observe({"event": "peer_exited", "peer": "peer-2", "exit_code": -9, "stderr": ["x"]})
    assert progress.steps_done == 1
    assert progress.peers["peer-2"].state == "exited (-9)"


def test_peers_are_listed_in_visiting_order_newcomers_among_them(progress: Progress) -> None:
    progress.observe(step("peer-10", 0))
    progress.observe(step("peer-3", 0))
    names = [peer.id for peer in progress.in_order]
    assert names == ["peer-0", "peer-1", "peer-2", "peer-3", "peer-10"]


def test_unknown_events_change_nothing(progress: Progress) -> None:
    progress.observe({"event": "coordinator_started", "address": "127.0.0.1:1"})
    progress.observe({"event": "something new", "peer": "peer-0"})
    assert progress.peers["peer-0"].state == "starting"


def test_the_outcome_holds_the_finished_and_names_the_lost(progress: Progress) -> None:
    topology = topology_event(lay_out(CONFIG, peer_ids(3)))
    progress.observe(topology)
    for event in (step("peer-0", 0, 2.0), step("peer-0", 1, None), step("peer-1", 0, sent=77)):
        progress.observe(event)
    evaluation = {"event": "evaluation", "peer": "peer-0", "step": 1, "metrics": {"accuracy": 0.5}}
    progress.observe(evaluation)
    progress.observe(finished("peer-0"))
    stderr = ["error: no memory"]
    progress.observe({"event": "peer_exited", "peer": "peer-1", "exit_code": 1, "stderr": stderr})

    outcome = progress.outcome(1.5, {})

    (peer,) = outcome.peers
    assert (peer.id, peer.steps, peer.metrics, peer.shard) == ("peer-0", 2, {"accuracy": 0.9}, 1)
    assert peer.losses == ((0, 2.0), (1, None))
    assert peer.evaluations == ((1, {"accuracy": 0.5}),)
    assert [(lost.id, lost.exit_code, lost.last_step) for lost in outcome.lost] == [
        ("peer-1", 1, 1),
        ("peer-2", None, 0),
    ]
    assert outcome.lost[0].last_words == ("error: no memory",)
    assert outcome.topologies == (topology,)
    assert outcome.wall_seconds == 1.5
