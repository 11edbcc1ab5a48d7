"""Hundreds of random faults of all kinds on a swarm of daemons, and what must hold all the while.

What happens, when and to whom is drawn beforehand from the seed alone (`draw`), so a seed replays
it. What must hold:

- each peer's steps rise, and the furthest step with them; the last one is reached by all, with
  exit code 0;
- no average counts more models than the swarm has peers; no loss is NaN or infinite;
- epochs never go backwards, whatever becomes of the coordinator;
- the memory of a daemon does not grow;
- in the end all peers are as accurate as those of a run without faults, but for 3 points.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil

from tests.daemon.wires import Wires, free_port

PEERS = 8
AT_ONCE = 3  # peers that are down, hang or are cut off; the others keep the model
KINDS = (
    *("kill", "kill and forget", "stop", "leave", "cut", "part", "part"),
    *("coordinator killed", "coordinator stopped", "disk"),
)
LASTING_S = {
    "kill": (0.0, 3.0),
    "kill and forget": (0.0, 3.0),
    "stop": (0.2, 6.0),
    "leave": (0.0, 2.0),
    "cut": (0.0, 0.0),
    "part": (0.5, 4.0),
    "coordinator killed": (0.2, 4.0),
    "coordinator stopped": (0.2, 3.0),
    "disk": (0.5, 4.0),
}
GROWTH_BYTES = 150 << 20  # of a daemon, over what it had when it began to train

SETTINGS = (
    *("task.name=digits", "data.alpha=1.0", "data.batch_size=16", f"peers={PEERS}", "seed=1"),
    *("topology.graph=random-regular", "checkpoint.every=20"),
    # Who can reach nobody trains alone after three deadlines: the coordinator is back before that.
    *("transport.deadline_s=10", "transport.linger_s=30", "coordinator.lease_s=4"),
    *("faults.drop=0.02", "faults.duplicate=0.02", "faults.delay_s=0.02", "faults.jitter_s=0.02"),
)


@dataclass(frozen=True, order=True)
class Fault:
    """At this second, this to these peers, for so long."""

    at_s: float
    kind: str
    peers: tuple[str, ...]
    lasts_s: float

    def __str__(self) -> str:
        who = " ".join(self.peers)
        return f"{self.at_s:7.1f} s  {self.kind} {who} for {self.lasts_s:.1f} s"


def draw(seed: int, seconds: float, every_s: float) -> list[Fault]:
    """The faults of a seed, in order: one in `every_s` seconds on average."""
    rng = random.Random(seed)
    faults, at_s = [], 0.0
    while (at_s := at_s + rng.expovariate(1 / every_s)) < seconds:
        kind = rng.choice(KINDS)
        count = rng.randint(1, 2) if kind == "part" else 1
        peers = () if "coordinator" in kind else tuple(rng.sample(range(PEERS), count))
        faults.append(
            Fault(at_s, kind, tuple(f"peer-{k}" for k in peers), rng.uniform(*LASTING_S[kind]))
        )
    return faults


@dataclass
class Soak:
    """One swarm under the faults of a seed. `swarm` is a fresh one without peers."""

    swarm: Any
    wires: Wires
    patience_s: float = 60.0  # without any step of any peer: the swarm stands still
    done: list[Fault] = field(default_factory=list)
    skipped: int = 0
    _ends: list[tuple[float, Callable[[], None]]] = field(default_factory=list)
    _down: set[str] = field(default_factory=set)
    _parted: set[str] = field(default_factory=set)
    _coordinator_down: bool = False
    _memory: dict[int, int] = field(default_factory=dict)
    _furthest: int = -1
    _moved_at: float = 0.0
    _ages: list[tuple[int, int]] = field(default_factory=list)
    _seen: dict[tuple[int, str], int] = field(default_factory=dict)

    def start(self) -> None:
        """Start all peers, and wait until they train."""
        self.wires.lead("coordinator", int(self.swarm.address.rpartition(":")[2]))
        for k in range(PEERS):
            self._add(f"peer-{k}")
        self.swarm.until_step(2)
        self._moved_at = time.monotonic()

    def run(self, faults: Sequence[Fault], until_step: int) -> None:
        """Inject the faults, each at its time, and stop before if the swarm has come so far; then
        let all of them end."""
        began = time.monotonic()
        for fault in faults:
            while (left_s := began + fault.at_s - time.monotonic()) > 0:
                self._pass_time(min(left_s, 0.25))
            if self._furthest >= until_step:
                break
            self._inject(fault)
        while self._ends:
            self._pass_time(0.25)
        self.wires.heal()

    def finish(self) -> dict[str, Any]:
        """Wait for the end of all peers; returns their last events."""
        while not all(process.has_ended for process in self.swarm.peers.values()):
            self._pass_time(0.25)
        return dict(self.swarm.finish())

    # --- faults ------------------------------------------------------------------------------

    def _inject(self, fault: Fault) -> None:
        free = not (set(fault.peers) & (self._down | self._parted))
        room = len(self._down | self._parted | set(fault.peers)) <= AT_ONCE
        if "coordinator" in fault.kind:
            free = not self._coordinator_down
        if fault.kind == "part" and self._parted:
            free = False
        if not (free and room):
            self.skipped += 1
            return
        self.done.append(fault)
        actions = self._actions(fault)
        next(actions, None)
        self._ends.append((time.monotonic() + fault.lasts_s, lambda: next(actions, None)))

    def _actions(self, fault: Fault) -> Iterator[None]:
        """What begins it; after the first `yield` what ends it."""
        match fault.kind:
            case "kill" | "kill and forget" | "leave":
                yield from self._away(fault)
            case "stop":
                yield from self._stopped(fault)
            case "cut":
                self.wires.cut(fault.peers[0])
                yield
            case "part":
                self._parted = set(fault.peers)
                self.wires.part(fault.peers)
                yield
                self.wires.heal()
                self._parted = set()
            case "disk":
                yield from self._disk(fault)
            case "coordinator killed" | "coordinator stopped":
                yield from self._coordinator(fault)

    def _away(self, fault: Fault) -> Iterator[None]:
        (peer,) = fault.peers
        process = self.swarm.peers[peer]
        self._down.add(peer)
        process.send(signal.SIGTERM if fault.kind == "leave" else signal.SIGKILL)
        yield
        code = process.exit_code()
        expected = 0 if fault.kind == "leave" else -signal.SIGKILL
        assert code in (expected, 0), f"{fault}: exit code {code}; {process}"
        if not process.events("peer_finished"):
            self._add(peer, *([] if fault.kind == "kill and forget" else ["--resume"]))
        self._down.discard(peer)

    def _stopped(self, fault: Fault) -> Iterator[None]:
        (peer,) = fault.peers
        process = self.swarm.peers[peer]
        self._down.add(peer)
        process.send(signal.SIGSTOP)
        yield
        process.send(signal.SIGCONT)
        self._down.discard(peer)

    def _disk(self, fault: Fault) -> Iterator[None]:
        """The next checkpoints cannot be written: there are folders in their place."""
        folder: Path = self.swarm.directory / fault.peers[0]
        last = max(
            (int(p.stem[-8:]) for p in folder.glob("checkpoint-????????.safetensors")), default=0
        )
        names = [f"checkpoint-{last + k:08d}.safetensors.partial" for k in range(1, 4)]
        for name in names:
            with suppress(OSError):
                (folder / name).mkdir()
        yield
        for name in names:
            with suppress(OSError):
                (folder / name).rmdir()

    def _coordinator(self, fault: Fault) -> Iterator[None]:
        self._coordinator_down = True
        killed = fault.kind == "coordinator killed"
        self.swarm.coordinator.send(signal.SIGKILL if killed else signal.SIGSTOP)
        if killed:
            self.swarm.coordinator.exit_code()
            self._note_epochs()
        yield
        if killed:
            self.swarm.restart_coordinator()
        else:
            self.swarm.coordinator.send(signal.SIGCONT)
        self._coordinator_down = False

    def _add(self, peer: str, *flags: str) -> None:
        port = free_port()
        self.wires.lead(peer, port)
        listen = ("--listen", f"127.0.0.1:{port}")
        advertise = ("--advertise", f"127.0.0.1:{self.wires.port_for(peer)}")
        coordinator = f"127.0.0.1:{self.wires.port_for('coordinator')}"
        self.swarm.add(peer, *listen, *advertise, *flags, coordinator=coordinator)

    # --- what must hold ----------------------------------------------------------------------

    def _pass_time(self, seconds: float) -> None:
        """Look after everything, end what is due, and wait for news or so long."""
        self._check()
        now = time.monotonic()
        due = [end for end in self._ends if end[0] <= now]
        self._ends = [end for end in self._ends if end[0] > now]
        for _, action in due:
            action()
        with self.swarm.news:
            self.swarm.news.wait(seconds)

    def _check(self) -> None:
        self._note_epochs()
        for name, process in self.swarm.peers.items():
            self._check_steps(name, process)
            self._check_memory(process)
            if process.has_ended and name not in self._down:
                assert process.exit_code() == 0, f"{process}"
        stands_s = time.monotonic() - self._moved_at
        finished = any(p.events("peer_finished") for p in self.swarm.peers.values())
        assert finished or stands_s < self.patience_s, (
            f"no step in {stands_s:.0f} s\n{self.swarm.peers}"
        )

    def _check_steps(self, name: str, process: Any) -> None:
        key = (process.pid, name)
        steps = process.events("step")
        for before, event in pairwise(steps[self._seen.get(key, 0) :]):
            assert event["step"] > before["step"], f"{before} then {event}; {process}"
        for event in steps[self._seen.get(key, 0) :]:
            assert event["models_counted"] <= event["swarm_size"], f"{event}; {process}"
            assert event["loss"] is not None, f"not finite: {event}; {process}"
        self._seen[key] = max(0, len(steps) - 1)
        if steps and steps[-1]["step"] > self._furthest:
            self._furthest, self._moved_at = steps[-1]["step"], time.monotonic()

    def _check_memory(self, process: Any) -> None:
        if process.step() < 10:
            return
        with suppress(psutil.Error):
            now = psutil.Process(process.pid).memory_full_info().uss
            began = self._memory.setdefault(process.pid, now)
            assert now - began < GROWTH_BYTES, f"{(now - began) >> 20} MB more; {process}"

    def _note_epochs(self) -> None:
        ages = [
            (event["epoch"]["term"], event["epoch"]["number"])
            for event in self.swarm.coordinator.events("topology")
        ]
        known = set(self._ages)
        for age in ages:
            if age not in known:
                assert not self._ages or age > self._ages[-1], f"{age} after {self._ages[-1]}"
                self._ages.append(age)
