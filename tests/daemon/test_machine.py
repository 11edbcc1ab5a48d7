"""The machine fails a peer: a disk that is full, no file descriptors, an end amid a save.

Limits of the running process (`prlimit`) stand in for what is exhausted: a file that may not grow
is a disk that is full.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import psutil
import pytest

from peer.training.checkpoint import load_latest
from tests.daemon.test_observing import peer_value, scrape

PAIR = (
    *("task.name=quadratics", "topology.graph=chain", "peers=2", "steps=150"),
    *("faults.delay_s=0.02", "transport.deadline_s=60", "checkpoint.every=5"),
)

WITHOUT = {
    "disk": (psutil.RLIMIT_FSIZE, 0),
    "file descriptors": (psutil.RLIMIT_NOFILE, 3),
}


@pytest.mark.parametrize("what", WITHOUT)
def test_training_goes_on_without_and_checkpoints_come_back(
    daemons: Callable[..., Any], what: str
) -> None:
    swarm = daemons(*PAIR)
    swarm.until_step(20)
    process = swarm.peers["peer-1"]
    address = process.until("peer_started")["metrics_address"]
    limit, least = WITHOUT[what]
    limits = psutil.Process(process.pid)
    soft, hard = limits.rlimit(limit)
    limits.rlimit(limit, (least, hard))
    process.until_step(process.step() + 30)
    before = load_latest(swarm.directory / "peer-1")
    limits.rlimit(limit, (soft, hard))
    failures = peer_value(scrape(address), "checkpoint_failures_total")
    assert failures >= 4
    process.until_step(process.step() + 12)
    assert load_latest(swarm.directory / "peer-1").step > before.step >= 15
    finished = swarm.finish()
    assert [event["steps"] for event in finished.values()] == [150, 150]
    assert sum(event["messages_missed"] for event in finished.values()) == 0


@pytest.mark.parametrize("what", WITHOUT)
def test_the_last_model_is_written_once_there_is_room(
    daemons: Callable[..., Any], what: str
) -> None:
    swarm = daemons(*PAIR)
    process = swarm.peers["peer-1"]
    process.until_step(100)
    limit, least = WITHOUT[what]
    limits = psutil.Process(process.pid)
    soft, hard = limits.rlimit(limit)
    limits.rlimit(limit, (least, hard))
    swarm.peers["peer-0"].until("peer_finished")
    process.until_step(149)
    assert not process.events("peer_finished")
    limits.rlimit(limit, (soft, hard))
    finished = swarm.finish()
    assert [event["steps"] for event in finished.values()] == [150, 150]
    assert all(t.isfinite().all() for t in swarm.model("peer-1").values())


def test_training_goes_on_when_nothing_can_be_told_of_it(daemons: Callable[..., Any]) -> None:
    """Events go to a file on a disk that is full."""
    swarm = daemons(*PAIR, "steps=30", start=False)
    swarm.add("peer-0")
    silent = swarm.add("peer-1", events_to="/dev/full")
    assert silent.exit_code() == 0
    assert silent.log.count("No space left on device") == 1
    finished = swarm.peers["peer-0"].until("peer_finished")
    assert (finished["steps"], finished["messages_missed"]) == (30, 0)
    assert all(t.isfinite().all() for t in swarm.model("peer-1").values())


def test_an_end_in_the_middle_of_a_save_leaves_all_that_was_learnt(
    daemons: Callable[..., Any],
) -> None:
    """It saves before every step: the signal hardly ever comes at another time."""
    swarm = daemons("task.name=digits", "topology.graph=chain", "checkpoint.every=1", peers=2)
    swarm.until_step(3)
    for process in swarm.peers.values():
        process.send(signal.SIGTERM)
    for peer_id, process in swarm.peers.items():
        assert process.exit_code() == 0
        folder = swarm.directory / peer_id
        assert load_latest(folder).step in (process.step() + 1, process.step() + 2)
        assert not list(folder.glob("*.partial"))
