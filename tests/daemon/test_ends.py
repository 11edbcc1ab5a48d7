"""How peers end when they are told to, and how a stopped swarm goes on."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from typing import Any

import pytest

from peer.training.checkpoint import load_latest
from peer.transport.read_model import read_model

CHAIN = (
    "task.name=quadratics",
    "topology.graph=chain",
    "peers=3",
    "faults.delay_s=0.01",
    "transport.deadline_s=60",
)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)], ids=["SIGTERM", "SIGINT"]
)
def test_a_peer_that_is_told_to_end_says_goodbye_and_keeps_what_it_learnt(
    daemons: Callable[..., Any], number: signal.Signals, code: int
) -> None:
    swarm = daemons(*CHAIN, "steps=120", "checkpoint.every=0", "coordinator.lease_s=60")
    swarm.until_step(20)
    leaver = swarm.peers.pop("peer-1")
    leaver.send(number)
    assert leaver.exit_code() == code
    assert leaver.events("state")[-1]["state"] == "left"
    checkpoint = load_latest(swarm.directory / "peer-1")
    assert checkpoint.step in (leaver.step() + 1, leaver.step() + 2)  # local steps were under way
    lost = swarm.coordinator.until("member_lost")
    assert (lost["peer"], lost["reason"]) == ("peer-1", "left")
    swarm.finish()
    assert all(swarm.steps(peer)[119]["models_counted"] == 2 for peer in swarm.peers)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)], ids=["SIGTERM", "SIGINT"]
)
def test_a_peer_that_waits_for_the_others_ends_at_once(
    daemons: Callable[..., Any], number: signal.Signals, code: int
) -> None:
    swarm = daemons(*CHAIN, start=False)
    waiting = swarm.add("peer-0")
    waiting.until("waiting")
    waiting.send(number)
    assert waiting.exit_code() == code
    lost = swarm.coordinator.until("member_lost")
    assert (lost["peer"], lost["reason"]) == ("peer-0", "left")


def test_a_stopped_swarm_goes_on_from_its_checkpoints(daemons: Callable[..., Any]) -> None:
    swarm = daemons(*CHAIN, "steps=100", "checkpoint.every=0")
    swarm.until_step(20)
    stopped = dict(swarm.peers)
    for process in stopped.values():
        process.send(signal.SIGTERM)
    assert [process.exit_code() for process in stopped.values()] == [0, 0, 0]
    done = {peer: load_latest(swarm.directory / peer).step for peer in stopped}
    swarm.add_all("--resume")
    finished = swarm.finish()
    for peer, process in swarm.peers.items():
        resumed = re.search(r"resumed from the checkpoint of step (\d+)", process.log)
        assert resumed
        assert int(resumed[1]) == done[peer] > 20
        assert min(swarm.steps(peer)) == max(done.values())  # where all can begin together
        assert finished[peer]["steps"] == 100
        assert finished[peer]["metrics"]["suboptimality"] < 0.01


def test_a_peer_that_stays_serves_its_model_until_it_is_told_to_end(
    daemons: Callable[..., Any],
) -> None:
    swarm = daemons(
        "task.name=quadratics", "topology.graph=chain", "peers=2", "steps=5", start=False
    )
    swarm.add_all("--stay")
    swarm.coordinator.until("finished")
    for peer, process in swarm.peers.items():
        assert not process.has_ended
        model = read_model(process.until("peer_started")["address"])
        assert (model.peer_id, model.step) == (peer, 5)
        process.send(signal.SIGTERM)
    assert set(swarm.finish()) == {"peer-0", "peer-1"}
