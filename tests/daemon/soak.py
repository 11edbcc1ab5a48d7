"""Hundreds of random faults of all kinds on a swarm of daemons, and what must hold all the while.

What happens, when and to whom is drawn beforehand from the seed alone (`draw`), so a seed replays
it. What must hold:

- each peer's steps rise, and the furthest step with them; the last one is reached by all, with
  exit code 0;
- no average counts more models than the swarm has peers; no loss is NaN or infinite;
- epochs never go backwards, whatever becomes of the coordinator, and of trees that peers have
  committed without one no two have the same (term, number);
- the memory of a daemon does not grow, nor its number of open files and threads;
- every model that is left in the end is finite;
- in the end all peers are as accurate as those of a run without faults, but for 3 points.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil

from relayswarm.errors import ExitCode
from tests.daemon.wires import Wires, free_port

PEERS = 8
AT_ONCE = 3  # peers that are down, hang or are cut off; the others keep the model
KINDS = (
    *("kill", "kill and forget", "stop", "leave", "cut", "part", "part"),
    *("coordinator killed", "coordinator stopped", "disk", "descriptors"),
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
    "descriptors": (0.5, 4.0),
}
HEALING = ("topology.self_heal=true", "topology.hello_s=0.4", "topology.max_age_s=4")
WITHOUT_S = (6.0, 15.0)
"""How long a coordinator is away from a swarm that can repair its tree by itself: longer than the
lease, and than it takes to do so."""
BEREFT = "bereft"
"""The coordinator and a peer are killed, and stay away until the others have committed a tree: how
long that takes is up to the machine. Such a swarm's first fault."""
LOOK_EVERY_S = 0.25
MEASURE_EVERY_S = 5.0  # of each process: a look through its pages takes milliseconds
WARM_S = 60.0  # of a process, in which what it keeps may still grow, by as much as GROWTH_BYTES
GROWTH_BYTES = 150 << 20
LATER_GROWTH_BYTES = 32 << 20  # over the most that it had while it was warming up
MOST_OPEN = 256  # files and sockets of one process
MOST_THREADS = 160
START_S = 120.0  # a process, until its first step
HEAL_S = 60.0  # until a tree without a coordinator stands
DONE = object()
LATE_STEPS = 60  # who came back this late has not done the last ones itself

PACED = """
    def loss(self, model, batch):
        time.sleep({pace_s})
        return super().loss(model, batch)
"""
"""Methods of a task whose local step takes so long. Without, a peer that is cut off trains alone
ten times as fast as the swarm, and ends the run before anybody can repair the tree."""

SETTINGS = (
    *("data.alpha=1.0", "data.batch_size=32", f"peers={PEERS}", "seed=1"),
    *("topology.graph=random-regular", "checkpoint.every=20"),
    # Who can reach nobody trains alone after three deadlines: the coordinator is back before that.
    *("transport.deadline_s=10", "transport.linger_s=30", "coordinator.lease_s=4"),
    *("faults.drop=0.02", "faults.duplicate=0.02", "faults.jitter_s=0.04"),
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


def draw(seed: int, seconds: float, every_s: float, *, healing: bool = False) -> list[Fault]:
    """The faults of a seed, in order: one in `every_s` seconds on average."""
    rng = random.Random(seed)
    lasting_s = dict(LASTING_S)
    faults, at_s = [], 0.0
    if healing:
        lasting_s |= {kind: WITHOUT_S for kind in KINDS if "coordinator" in kind}
        faults.append(Fault(0.0, BEREFT, (f"peer-{rng.randrange(1, PEERS)}",), 1.0))
    while (at_s := at_s + rng.expovariate(1 / every_s)) < seconds:
        kind = rng.choice(KINDS)
        count = rng.randint(1, 2) if kind == "part" else 1
        peers = () if "coordinator" in kind else tuple(rng.sample(range(PEERS), count))
        faults.append(
            Fault(at_s, kind, tuple(f"peer-{k}" for k in peers), rng.uniform(*lasting_s[kind]))
        )
    return faults


@dataclass
class Size:
    """What one process has taken: unique bytes, in its first minute and after it."""

    since: float
    first: int
    measured_at: float = 0.0
    warm: int = 0  # the most in the first minute
    later: int = 0  # and after it; 0: not that old

    @property
    def grew(self) -> int:
        """By how many bytes after the first minute."""
        return max(0, self.later - self.warm)


@dataclass
class Soak:
    """One swarm under the faults of a seed. `swarm` is a fresh one without peers."""

    swarm: Any
    wires: Wires
    task: Path  # the folder of the package that has it
    patience_s: float = 60.0  # without any step of any peer: the swarm stands still
    done: list[Fault] = field(default_factory=list)
    skipped: int = 0
    _ends: list[tuple[float, Iterator[None]]] = field(default_factory=list)
    _down: set[str] = field(default_factory=set)
    _parted: set[str] = field(default_factory=set)
    _starved: set[str] = field(default_factory=set)
    _coordinator_down: bool = False
    sizes: dict[int, Size] = field(default_factory=dict)  # by process id
    most_open: int = 0
    most_threads: int = 0
    _furthest: int = -1
    _moved_at: float = 0.0
    _looked_at: float = 0.0
    _ages: list[tuple[int, int]] = field(default_factory=list)
    trees: dict[tuple[int, int], str] = field(default_factory=dict)  # committed by peers, by age
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
                self._pass_time(min(left_s, LOOK_EVERY_S))
            if self._furthest >= until_step:
                break
            self._inject(fault)
        while self._ends:
            self._pass_time(LOOK_EVERY_S)
        self.wires.heal()

    def finish(self) -> dict[str, Any]:
        """Wait for the end of all peers; returns their last events."""
        while not all(process.has_ended for process in self.swarm.peers.values()):
            self._pass_time(LOOK_EVERY_S)
        finished = dict(self.swarm.finish())
        for peer in finished:
            assert all(t.isfinite().all() for t in self.swarm.model(peer).values()), peer
        return finished

    @property
    def steps(self) -> int:
        """How far the swarm has come."""
        return self._furthest + 1

    # --- faults ------------------------------------------------------------------------------

    def _inject(self, fault: Fault) -> None:
        free = not (set(fault.peers) & (self._down | self._parted))
        room = len(self._down | self._parted | set(fault.peers)) <= AT_ONCE
        if "coordinator" in fault.kind or fault.kind == BEREFT:
            free = free and not self._coordinator_down
        if fault.kind == "part" and self._parted:
            free = False
        if fault.kind == "descriptors" and set(fault.peers) & self._starved:
            free = False  # the second to end would leave the peer with the limit of the first
        if not (free and room):
            self.skipped += 1
            return
        self.done.append(fault)
        actions = self._actions(fault)
        next(actions)
        self._ends.append((time.monotonic() + fault.lasts_s, actions))

    def _actions(self, fault: Fault) -> Iterator[None]:
        """What begins it; after the first `yield` what ends it, after more what has to wait."""
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
            case "descriptors":
                yield from self._descriptors(fault)
            case "coordinator killed" | "coordinator stopped":
                yield from self._coordinator(fault)
            case "bereft":
                yield from self._bereft(fault)

    def _away(self, fault: Fault) -> Iterator[None]:
        (peer,) = fault.peers
        process = self.swarm.peers[peer]
        self._down.add(peer)
        sent = signal.SIGTERM if fault.kind == "leave" else signal.SIGKILL
        starts = not process.events("peer_started")  # it may not listen to signals yet
        process.send(sent)
        yield
        code = process.exit_code()
        expected = {0, -sent} if starts or sent is signal.SIGKILL else {0}
        assert code in expected, f"{fault}: exit code {code}; {process}"
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

    def _descriptors(self, fault: Fault) -> Iterator[None]:
        """It may open nothing more: no file, and no connection. Who is just starting says so and
        ends, and is started again."""
        (peer,) = fault.peers
        process = self.swarm.peers[peer]
        self._starved.add(peer)
        starts = process.step() < 0
        if starts:
            self._down.add(peer)
        with suppress(psutil.Error):
            soft, hard = psutil.Process(process.pid).rlimit(psutil.RLIMIT_NOFILE)
            psutil.Process(process.pid).rlimit(psutil.RLIMIT_NOFILE, (3, hard))
        yield
        with suppress(psutil.Error):
            psutil.Process(process.pid).rlimit(psutil.RLIMIT_NOFILE, (soft, hard))
        self._starved.discard(peer)
        if not starts:
            return
        late = time.monotonic() + START_S
        while process.step() < 0 and not process.has_ended:
            assert time.monotonic() < late, f"{fault}: {process}"
            yield
        if process.has_ended:
            assert process.exit_code() == ExitCode.USAGE, f"{fault}: {process}"
            self._add(peer, "--resume")
        self._down.discard(peer)

    def _coordinator(self, fault: Fault) -> Iterator[None]:
        self._coordinator_down = True
        killed = fault.kind != "coordinator stopped"
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

    def _bereft(self, fault: Fault) -> Iterator[None]:
        before, late = len(self.trees), time.monotonic() + HEAL_S
        steps = [self._coordinator(fault), self._away(fault)]
        for actions in steps:
            next(actions)
        yield
        while len(self.trees) == before:
            assert time.monotonic() < late, f"{fault}: no tree\n{self._told()}"
            yield
        for actions in steps:
            next(actions, None)

    def _add(self, peer: str, *flags: str) -> None:
        port = free_port()
        self.wires.lead(peer, port)
        listen = ("--listen", f"127.0.0.1:{port}")
        advertise = ("--advertise", f"127.0.0.1:{self.wires.port_for(peer)}")
        coordinator = f"127.0.0.1:{self.wires.port_for('coordinator')}"
        patience = ("--patience", "600")  # the coordinator may be killed again and again
        flags = (*listen, *advertise, *patience, "--allow-task", "theirs", *flags)
        self.swarm.add(peer, *flags, coordinator=coordinator, path=[self.task])

    # --- what must hold ----------------------------------------------------------------------

    def _pass_time(self, seconds: float) -> None:
        """Look after everything, end what is due, and wait for news or so long."""
        self._check()
        now = time.monotonic()
        due = [actions for at_s, actions in self._ends if at_s <= now]
        self._ends = [end for end in self._ends if end[0] > now]
        for actions in due:
            if next(actions, DONE) is not DONE:
                self._ends.append((now + LOOK_EVERY_S, actions))
        with self.swarm.news:
            self.swarm.news.wait(seconds)

    def _check(self) -> None:
        if (now := time.monotonic()) - self._looked_at < LOOK_EVERY_S:
            return
        self._looked_at = now
        self._note_epochs()
        self._check_size(self.swarm.coordinator)
        for name, process in self.swarm.peers.items():
            self._check_steps(name, process)
            if process.step() >= 0:
                self._check_size(process)
            if process.has_ended and name not in self._down:
                assert process.exit_code() == 0, f"{process}"
                self._check_end(process)
        stands_s = time.monotonic() - self._moved_at
        finished = any(p.events("peer_finished") for p in self.swarm.peers.values())
        assert finished or stands_s < self.patience_s, (
            f"no step in {stands_s:.0f} s\n{self._told()}"
        )

    def _check_end(self, process: Any) -> None:
        (event,) = process.events("peer_finished")
        assert event["steps"] >= self.swarm.config.steps - LATE_STEPS, f"{event}; {process}"

    def _told(self) -> str:
        return "\n".join(map(str, (self.swarm.coordinator, *self.swarm.peers.values())))

    def _check_steps(self, name: str, process: Any) -> None:
        key = (process.pid, name)
        start = self._seen.get(key, 0)
        steps = process.events("step", start)
        for before, event in pairwise(steps):
            assert event["step"] > before["step"], f"{before} then {event}; {process}"
        for event in steps:
            assert event["models_counted"] <= event["swarm_size"] <= PEERS, f"{event}; {process}"
            assert event["loss"] is not None, f"not finite: {event}; {process}"
        for event in process.events("tree_committed"):
            age = (event["epoch"]["term"], event["epoch"]["number"])
            tree = f"{event['members']} {event['edges']}"
            assert self.trees.setdefault(age, tree) == tree, f"two trees of {age}; {process}"
        self._seen[key] = start + max(0, len(steps) - 1)  # the next is compared with the last
        if steps and steps[-1]["step"] > self._furthest:
            self._furthest, self._moved_at = steps[-1]["step"], time.monotonic()

    def _check_size(self, process: Any) -> None:
        now = time.monotonic()
        size = self.sizes.get(process.pid)
        if size and now - size.measured_at < MEASURE_EVERY_S:
            return
        with suppress(psutil.Error):
            its = psutil.Process(process.pid)
            taken, opened, threads = its.memory_full_info().uss, its.num_fds(), its.num_threads()
            size = self.sizes.setdefault(process.pid, Size(now, taken))
            size.measured_at = now
            if now - size.since < WARM_S:
                size.warm = max(size.warm, taken)
            else:
                size.later = max(size.later, taken)
            self.most_open = max(self.most_open, opened)
            self.most_threads = max(self.most_threads, threads)
            assert opened < MOST_OPEN, f"{opened} open files; {process}"
            assert threads < MOST_THREADS, f"{threads} threads; {process}"
            grew = max(size.warm, size.later) - size.first
            assert grew < GROWTH_BYTES, f"{grew >> 20} MB more; {process}"
            grew = size.grew
            assert grew < LATER_GROWTH_BYTES, f"{grew >> 20} MB more in the end; {process}"

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
