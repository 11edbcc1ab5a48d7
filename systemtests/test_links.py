"""Four peers, each in a network of its own, on links that lose packets and links that are slow.
`make test-links`.

Each peer has a network namespace; a bridge in a fifth one, where the coordinator is, joins them.
iptables drops packets at random as they come in, `tc tbf` holds to a rate what goes out. One run
goes through all of it, a fault after the other, and prints how fast it stepped meanwhile and what
share of the messages was lost. Needs root.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from systemtests.prometheus import until
from systemtests.switched import inside, run, switched

SWITCH = f"rs-{os.getpid()}-switch"
SWITCH_IP, PORT = "10.204.0.1", 50050
NAMES = tuple(f"peer-{k}" for k in range(4))
NETWORKS = {name: f"rs-{os.getpid()}-{name}" for name in NAMES}
ADDRESSES = {name: f"10.204.0.{k + 2}" for k, name in enumerate(NAMES)}
RELAYSWARM = (sys.executable, "-m", "peer.cli")
RUN = (
    *("task.name=digits", "data.alpha=1.0", "topology.graph=chain", f"peers={len(NAMES)}"),
    *("steps=1000000", "transport.deadline_s=4", "coordinator.lease_s=8"),
)
LAST_S = 20.0  # each fault, and the time without one before and after
PATIENCE_S = 120.0
EXPECTED = 2 * (len(NAMES) - 1)  # messages of a step: two over each edge of a tree

Event = dict[str, Any]

pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def networks() -> Iterator[None]:
    addresses = {namespace: ADDRESSES[name] for name, namespace in NETWORKS.items()}
    with switched(SWITCH, SWITCH_IP, addresses):
        yield


@contextmanager
def losing(probability: float, *names: str) -> Iterator[None]:
    """Of what comes in there, packets are dropped at random."""
    chance = ("--mode", "random", "--probability", str(probability))
    rule = ("INPUT", "-i", "eth0", "-m", "statistic", *chance, "-j", "DROP")
    for name in names:
        run(*inside(NETWORKS[name], "iptables", "-A", *rule))
    yield
    for name in names:
        run(*inside(NETWORKS[name], "iptables", "-D", *rule))


@contextmanager
def limited(rate: str, *names: str) -> Iterator[None]:
    """What goes out there is held to a rate."""
    for name in names:
        shape = ("tbf", "rate", rate, "burst", "32kbit", "latency", "100ms")
        run("tc", "-n", NETWORKS[name], "qdisc", "add", "dev", "eth0", "root", *shape)
    yield
    for name in names:
        run("tc", "-n", NETWORKS[name], "qdisc", "delete", "dev", "eth0", "root")


class Swarm:
    """A coordinator and peers, each in its network; what they announce goes to files."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self._stack, self._folder = stack, folder
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        listen = ("--listen", f"{SWITCH_IP}:{PORT}", "--metrics-listen", "127.0.0.1:0")
        settings = [f"--set={one}" for one in RUN]
        self._start(SWITCH, "coordinator", "coordinator", *listen, *settings)
        for name, namespace in NETWORKS.items():
            where = ("--coordinator", f"{SWITCH_IP}:{PORT}", "--listen", f"{ADDRESSES[name]}:0")
            self._start(namespace, name, "peer", "--id", name, *where, "--device", "cpu")

    def _start(self, namespace: str, who: str, *arguments: str) -> None:
        command = inside(namespace, *RELAYSWARM, *arguments, "--insecure", "--json")
        with (
            (self._folder / f"{who}.jsonl").open("wb") as said,
            (self._folder / f"{who}.log").open("wb") as log,
        ):
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            process = self._stack.enter_context(
                subprocess.Popen(command, stdout=said, stderr=log, env=environment)
            )
        self._stack.callback(process.kill)
        self.processes[who] = process

    def events(self, who: str, name: str) -> list[Event]:
        """What a process has announced so far."""
        lines = (self._folder / f"{who}.jsonl").read_text().splitlines(keepends=True)
        found = [json.loads(line) for line in lines if line.endswith("\n")]
        return [event for event in found if event["event"] == name]

    def counts(self) -> dict[str, int]:
        """By peer, how many steps it has announced."""
        return {name: len(self.events(name, "step")) for name in NAMES}

    def all_counted(self) -> bool:
        """Whether the last average of each peer has all models."""
        last = [self.events(name, "step")[-1:] for name in NAMES]
        return all(step and step[0]["models_counted"] == len(NAMES) for step in last)

    def check(self) -> None:
        """What must hold whatever the links do."""
        assert all(process.poll() is None for process in self.processes.values())
        for name in NAMES:
            steps = self.events(name, "step")
            numbers = [event["step"] for event in steps]
            assert numbers == sorted(set(numbers)), name
            assert all(1 <= e["models_counted"] <= e["swarm_size"] <= len(NAMES) for e in steps)
            assert all(event["loss"] is not None for event in steps), name


def watch(swarm: Swarm, seconds: float) -> tuple[float, float]:
    """Let it train for so long; returns the slowest peer's steps per second, and the share of
    messages that were not used in their average."""
    before, began = swarm.counts(), time.monotonic()
    time.sleep(seconds)  # the time itself is what is measured over
    taken_s = time.monotonic() - began
    steps = {name: swarm.events(name, "step")[before[name] :] for name in NAMES}
    swarm.check()
    missed = sum(event["missed"] for each in steps.values() for event in each)
    expected = EXPECTED / len(NAMES) * sum(len(each) for each in steps.values())
    return min(len(each) for each in steps.values()) / taken_s, missed / max(expected, 1)


FAULTS: dict[str, Callable[[], Any]] = {
    "1 % of packets lost, everywhere": lambda: losing(0.01, *NAMES),
    "5 % of packets lost, everywhere": lambda: losing(0.05, *NAMES),
    "20 % of packets lost, at peer-1": lambda: losing(0.2, "peer-1"),
    "2 Mbit/s out of peer-1": lambda: limited("2mbit", "peer-1"),
    "2 Mbit/s everywhere, 1 % lost": lambda: both(),
    "peer-3 hears nothing": lambda: losing(1.0, "peer-3"),
}


@contextmanager
def both() -> Iterator[None]:
    with losing(0.01, *NAMES), limited("2mbit", *NAMES):
        yield


@pytest.mark.usefixtures("networks")
def test_a_swarm_trains_on_over_bad_links(tmp_path: Path) -> None:
    with ExitStack() as stack:
        swarm = Swarm(stack, tmp_path)
        until(swarm.all_counted, "all average", PATIENCE_S)
        rows = {"none": watch(swarm, LAST_S)}
        for what, fault in FAULTS.items():
            with fault():
                rows[what] = watch(swarm, LAST_S)
            until(swarm.all_counted, f"all average after: {what}", PATIENCE_S)
        rows["none any more"] = watch(swarm, LAST_S)
        for what, (rate, lost) in rows.items():
            print(f"{what:34s} {rate:6.1f} steps/s  {lost:6.1%} of the messages lost")  # noqa: T201
        for what, (rate, lost) in rows.items():
            assert rate > 0 or "nothing" in what, what
            assert lost < (1.0 if "nothing" in what else 0.3), what
        assert rows["none any more"][1] == 0
        for name in NAMES:
            swarm.processes[name].send_signal(signal.SIGTERM)
        assert [swarm.processes[name].wait(60) for name in NAMES] == [0] * len(NAMES)
