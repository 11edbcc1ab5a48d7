"""Several coordinators with one etcd: one leads, another takes over. `make test-etcd`."""

from __future__ import annotations

import itertools
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from relayswarm import config as run_config
from systemtests.etcd import running_etcd
from tests.daemon.conftest import Process, Zygote
from tests.daemon.wires import free_port

RUN = (
    "task.name=quadratics",
    "topology.graph=ring",
    "peers=3",
    "steps=1000000",
    "faults.delay_s=0.02",  # so that there are steps to watch
    "transport.deadline_s=60",
    "coordinator.lease_s=3",
)
TAKEN_OVER_S = 3.0
LOST = 4  # exit code

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    zygote = Zygote()
    yield zygote
    zygote.close()


class Town:
    """One etcd, coordinators and peers."""

    def __init__(self, zygote: Zygote, folder: Path, etcd: str) -> None:
        self._zygote, self._folder = zygote, folder
        self.store = f"etcd://{etcd}/town"
        self._config = folder / "run.toml"
        self._config.write_text(run_config.parse("", RUN).to_toml(), encoding="utf-8")
        self._news, self._numbers = threading.Condition(), itertools.count()
        self.addresses = [f"127.0.0.1:{free_port()}" for _ in range(2)]
        self.started: list[Process] = []

    def coordinator(self, place: int) -> Process:
        """At one of the two addresses."""
        flags = ("--config", str(self._config), "--store", self.store)
        return self.start("coordinator", *flags, "--listen", self.addresses[place])

    def peers(self) -> list[Process]:
        both = ",".join(self.addresses)
        return [self.start("peer", "--id", f"peer-{k}", "--coordinator", both) for k in range(3)]

    def start(self, command: str, *flags: str) -> Process:
        name = f"{command}-{next(self._numbers)}"
        log = self._folder / f"{name}.log"
        process = Process(self._zygote, name, [command, "--json", *flags], log, self._news)
        self.started.append(process)
        return process

    def close(self) -> None:
        for process in self.started:
            if not process.has_ended:
                process.send(signal.SIGCONT)
                process.send(signal.SIGKILL)
        for process in self.started:
            process.exit_code()


@pytest.fixture
def town(zygote: Zygote, tmp_path: Path) -> Iterator[Town]:
    with ExitStack() as stack:
        town = Town(zygote, tmp_path, stack.enter_context(running_etcd(tmp_path)))
        stack.callback(town.close)
        yield town


def age(event: Any) -> tuple[int, int]:
    return event["epoch"]["term"], event["epoch"]["number"]


def pair(town: Town) -> tuple[Process, Process]:
    """The one that leads, and the one that stands by."""
    leader = town.coordinator(0)
    leader.until("coordinator_started")
    other = town.coordinator(1)
    other.until("standing_by")
    return leader, other


def taken_over_s(other: Process, since: float) -> float:
    other.until("coordinator_started")
    return time.monotonic() - since


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_another_takes_over_and_peers_follow(town: Town, how: signal.Signals) -> None:
    leader, other = pair(town)
    peers = town.peers()
    first = leader.until("topology")
    for process in peers:
        process.until_step(20)
    assert other.events("coordinator_started") == []
    began = time.monotonic()
    leader.send(how)
    seconds = taken_over_s(other, began)
    assert seconds < TAKEN_OVER_S
    again = other.until("topology")
    published_s = time.monotonic() - began
    said = f"{how.name}: taken over after {seconds:.2f} s, new epoch after {published_s:.2f} s"
    sys.stdout.write(said + "\n")  # shown by `make test-etcd`
    assert age(again) > age(first)
    assert again["members"] == ["peer-0", "peer-1", "peer-2"]
    for process in peers:
        process.until_step(again["effective_step"] + 20)
        steps = {event["step"]: event for event in process.events("step")}
        later = [steps[again["effective_step"] + k] for k in range(10, 20)]
        assert {(e["models_counted"], e["missed"]) for e in later} == {(3, 0)}
    if how is signal.SIGSTOP:
        published = len(leader.events("topology"))
        leader.send(signal.SIGCONT)
        assert leader.exit_code() == LOST
        assert len(leader.events("topology")) == published  # it leads no more
        assert "stand by" in leader.log
    third = town.coordinator(0)  # and so on
    third.until("standing_by")
    began = time.monotonic()
    other.send(how)
    assert taken_over_s(third, began) < TAKEN_OVER_S
    assert age(third.until("topology")) > age(again)


def test_one_that_ends_hands_over(town: Town) -> None:
    leader, other = pair(town)
    leader.send(signal.SIGTERM)
    assert leader.exit_code() == 0
    began = time.monotonic()
    assert taken_over_s(other, began) < 1.0
    other.send(signal.SIGTERM)
    assert other.exit_code() == 0


def test_one_that_stands_by_ends_when_told(town: Town) -> None:
    _, other = pair(town)
    other.send(signal.SIGTERM)
    assert other.exit_code() == 0


def test_without_etcd_there_is_no_coordinator_but_peers_train_on(
    zygote: Zygote, tmp_path: Path
) -> None:
    with running_etcd(tmp_path) as etcd, ExitStack() as stack:
        town = Town(zygote, tmp_path, etcd)
        stack.callback(town.close)
        leader = town.coordinator(0)
        peers = town.peers()
        leader.until("topology")
        for process in peers:
            process.until_step(20)
        stack.pop_all()
    assert leader.exit_code() == LOST
    step = max(process.step() for process in peers)
    for process in peers:
        process.until_step(step + 30)
    late = town.coordinator(1)
    assert late.exit_code() == 2
    assert "etcd does not answer" in late.log
    town.close()


def test_another_run_in_the_same_place_is_refused(town: Town) -> None:
    town.coordinator(0).until("coordinator_started")
    leader = town.started[0]
    leader.send(signal.SIGKILL)
    leader.exit_code()
    flags = ("--store", town.store, "--set", 'run_id="other"', "--listen", town.addresses[1])
    other = town.start("coordinator", *flags)
    assert other.exit_code() == 2
    assert "holds the run" in other.log
