"""Newcomers get the model from a member: from another one if the first dies in the middle of it,
however many come at once, and however slow they are.

No run here comes to its end: what is awaited is that all are in everybody's average.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.daemon.conftest import PATIENCE_S, add_wired

HIDDEN = 3000  # 225,010 parameters, 0.9 MB
STEPS = "steps=100000"
SLOW = """
    def loss(self, model, batch):
        time.sleep(0.5)  # seconds, whatever else the machine does
        return super().loss(model, batch)
"""


def until_counted(swarm: Any, models: int) -> None:
    """Wait until that many models are in every peer's average, from now on."""
    now = max(process.step() for process in swarm.peers.values())
    for process in swarm.peers.values():
        process.until("step", lambda e: e["step"] > now and e["models_counted"] == models)


def start_of(newcomer: Any) -> tuple[int, str]:
    """The step of the model that it was given, and by whom."""
    found = re.search(r"starting from step (\d+) of (\S+)", newcomer.log)
    assert found, newcomer
    return int(found[1]), found[2]


def test_when_a_donor_dies_in_the_middle_another_one_is_asked(
    wired: Callable[..., Any], install: Callable[..., Path]
) -> None:
    """Until it dies the donor trains on, however long its reader takes."""
    theirs = install(HIDDEN)
    swarm, wires = wired(
        *("task.name=theirs", "data.batch_size=4", "data.shards=4", "peers=3", STEPS),
        *("topology.graph=complete", "faults.delay_s=0.02", "transport.deadline_s=40"),
        path=[theirs],
    )
    swarm.until_step(5)
    wires.hold_after(1 << 18, "peer-0", "peer-3")  # the first to be asked: shard 3 of 3 donors
    add_wired(swarm, wires, "peer-3", path=[theirs])
    newcomer, first = swarm.peers["peer-3"], swarm.peers["peer-0"]
    wires.until_stuck("peer-0", "peer-3", PATIENCE_S)
    first.until_step(first.step() + 10)
    swarm.peers.pop("peer-0").send(signal.SIGKILL)
    wires.release("peer-0", "peer-3")
    until_counted(swarm, 3)
    assert "no model from peer-0" in newcomer.log
    step, donor = start_of(newcomer)
    assert step >= 5
    assert donor in ("peer-1", "peer-2")


def test_many_newcomers_at_once_are_all_served_and_the_donors_train_on(
    daemons: Callable[..., Any], install: Callable[..., Path]
) -> None:
    """The donors' steps are one after the other, none is jumped over."""
    theirs = install(HIDDEN)
    swarm = daemons(
        *("task.name=theirs", "data.batch_size=4", "data.shards=8", "peers=2", STEPS),
        *("topology.graph=star", "faults.delay_s=0.02", "transport.deadline_s=40"),
        path=[theirs],
    )
    swarm.until_step(5)
    newcomers = [
        swarm.add(f"peer-{k}", "--allow-task", "theirs", path=[theirs]) for k in range(2, 8)
    ]
    until_counted(swarm, 8)
    assert {start_of(newcomer)[1] for newcomer in newcomers} >= {"peer-0", "peer-1"}
    assert min(start_of(newcomer)[0] for newcomer in newcomers) >= 5
    steps = sorted(swarm.steps("peer-0"))
    assert steps == list(range(len(steps)))


def test_a_newcomer_that_is_slower_than_the_swarm_gets_in_and_stays(
    daemons: Callable[..., Any], install: Callable[..., Path]
) -> None:
    """It never keeps up, is not waited for beyond the deadline, and jumps ahead again and again."""
    theirs = install(20)
    swarm = daemons(
        *("task.name=theirs", "data.batch_size=4", "data.shards=4", "peers=3", STEPS),
        *("topology.graph=chain", "faults.delay_s=0.02", "transport.deadline_s=0.1"),
        "coordinator.lease_s=60",
        path=[theirs],
    )
    swarm.until_step(5)
    newcomer = swarm.add("peer-3", "--allow-task", "theirs", path=[install(20, SLOW)])

    def jumps() -> int:
        steps = [event["step"] for event in newcomer.events("step")]
        return sum(b - a > 1 for a, b in pairwise(steps))

    newcomer.until("step", lambda _: jumps() >= 3)
    swarm.peers["peer-2"].until("step", lambda event: event["models_counted"] == 4)
    assert start_of(newcomer)[0] >= 5
    assert len(swarm.coordinator.events("topology")) == 2  # the start, and its joining
