"""Swarms of real processes on loopback: started fast, listened to, awaited with a deadline."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch import Tensor

import peer
from relayswarm import config as run_config
from relayswarm.config import RunConfig
from tests.daemon.wires import Wires, free_port

PATIENCE_S = 90.0  # for a machine that does other things too; nothing waits when all is well
PRELOAD_S = 300.0  # for the imports, before the first process: they take all of a core
LIMIT_S = 480  # of a test that does not say otherwise: more than one wait may be long

Event = Mapping[str, Any]


class Zygote:
    """The process that all others are forked from; see `zygote.py`."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        root = Path(peer.__file__).parents[1]
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("zygote.py")), str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()],
            env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        )
        theirs.close()
        self._control = ours
        self._changed = threading.Condition()
        self._started: list[int] = []
        self._exit_codes: dict[int, int] = {}
        self._is_dead = False
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def start(self, arguments: list[str], path: list[str], stdout: int, stderr: int) -> int:
        """Run `relayswarm` with these arguments and folders of modules; returns its process id."""
        request = json.dumps({"arguments": arguments, "path": path}).encode()
        with self._changed:
            socket.send_fds(self._control, [request], [stdout, stderr])
            self._changed.wait_for(lambda: self._started or self._is_dead, PRELOAD_S)
            assert self._started, "no process started"
            return self._started.pop()

    def exit_code(self, pid: int, timeout_s: float) -> int | None:
        """How that process ended, minus the signal if by one; None if it still runs."""
        with self._changed:
            self._changed.wait_for(lambda: pid in self._exit_codes, timeout_s)
            return self._exit_codes.get(pid)

    def close(self) -> None:
        self._control.shutdown(socket.SHUT_RDWR)
        self._process.wait(PATIENCE_S)
        self._listener.join()
        self._control.close()

    def _listen(self) -> None:
        with self._control.makefile("r") as lines:
            for line in lines:
                news = json.loads(line)
                with self._changed:
                    if "started" in news:
                        self._started.append(news["started"])
                        self._exit_codes.pop(news["started"], None)  # of an earlier such pid
                    else:
                        self._exit_codes[news["ended"]] = news["exit_code"]
                    self._changed.notify_all()
        with self._changed:
            self._is_dead = True
            self._changed.notify_all()


class Process:
    """One `relayswarm` process and the events that it has announced."""

    def __init__(
        self,
        zygote: Zygote,
        name: str,
        arguments: list[str],
        log: Path,
        news: threading.Condition,
        path: Sequence[Path] = (),
        events_to: str = "",
    ) -> None:
        """`events_to` is a file in place of this object, which then hears of none."""
        self.name = name
        self._zygote = zygote
        self._log = log
        self._news = news
        self._events: dict[str, list[Event]] = {}  # by name
        self._step = -1
        self._last: deque[Event] = deque(maxlen=3)
        self._is_silent = False  # it has ended, and all that it announced is in
        reader, writer = os.pipe()
        if events_to:
            os.close(writer)
            writer = os.open(events_to, os.O_WRONLY)
        with log.open("ab") as stderr:
            self.pid = zygote.start(arguments, [*map(str, path)], writer, stderr.fileno())
        os.close(writer)
        self._listener = threading.Thread(target=self._listen, args=(reader,), daemon=True)
        self._listener.start()

    def events(self, name: str, start: int = 0) -> list[Event]:
        """The events of that name so far, in order, from the `start`-th on."""
        with self._news:
            return self._events.get(name, [])[start:]

    def step(self) -> int:
        """The last step that it has announced as done; -1 before the first."""
        return self._step

    def until(self, name: str, where: Callable[[Event], bool] = lambda _: True) -> Event:
        """The first event of that name for which `where` holds, as soon as it has come."""

        def found() -> list[Event]:
            return [event for event in self.events(name) if where(event)]

        self._await(found, f"{name} event")
        return found()[0]

    def until_step(self, step: int) -> None:
        """Wait until it has announced this step, or a later one."""
        self._await(lambda: self.step() >= step, f"step {step}")

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    @property
    def has_ended(self) -> bool:
        return self._zygote.exit_code(self.pid, 0.0) is not None

    def exit_code(self) -> int:
        """Wait for its end, and for all that it has announced before."""
        code = self._zygote.exit_code(self.pid, PATIENCE_S)
        assert code is not None, f"{self.name} does not end; {self}"
        self._listener.join(PATIENCE_S)
        return code

    @property
    def log(self) -> str:
        return self._log.read_text(encoding="utf-8")

    def __str__(self) -> str:
        """For messages of failed tests."""
        with self._news:
            last = "\n".join(map(json.dumps, self._last))
        return f"{self.name} (pid {self.pid}) said last:\n{last}\nand logged:\n{self.log[-2000:]}"

    def _await(self, condition: Callable[[], Any], what: str) -> None:
        with self._news:
            self._news.wait_for(lambda: condition() or self._is_silent, PATIENCE_S)
            assert condition(), f"waited in vain for {what} of {self}"

    def _listen(self, descriptor: int) -> None:
        with open(descriptor, encoding="utf-8") as lines:
            for line in lines:
                self._note(json.loads(line))
        with self._news:
            self._is_silent = True
            self._news.notify_all()

    def _note(self, event: Event) -> None:
        with self._news:
            self._events.setdefault(event["event"], []).append(event)
            self._last.append(event)
            if event["event"] == "step":
                self._step = max(self._step, event["step"])
            self._news.notify_all()


class Swarm:
    """A coordinator and peers, with the folders that they keep their state in."""

    def __init__(
        self, zygote: Zygote, directory: Path, config: RunConfig, flags: Sequence[str] = ()
    ) -> None:
        self.config = config
        self.directory = directory
        self.peers: dict[str, Process] = {}
        self._zygote = zygote
        self.news = self._news = threading.Condition()
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / "run.toml"
        path.write_text(config.to_toml(), encoding="utf-8")
        self._command = ["--config", str(path), *LISTEN, *flags]
        self.coordinator = self._start("coordinator", self._command)
        self.address: str = self.coordinator.until("coordinator_started")["address"]

    def add(
        self,
        peer_id: str,
        *flags: str,
        coordinator: str = "",
        path: Sequence[Path] = (),
        events_to: str = "",
    ) -> Process:
        """Start a peer, in place of an earlier process of that name if there is one; `path` are
        folders of modules that it has, `events_to` the file that gets its events."""
        process = self._start(
            peer_id,
            [
                *("--id", peer_id),
                *("--coordinator", coordinator or self.address),
                *("--state-dir", str(self.directory / peer_id)),
                *("--device", "cpu"),
                *(("--role", "forward") if peer_id in self.config.data.forward else ()),
                *flags,
            ],
            command="peer",
            path=path,
            events_to=events_to,
        )
        self.peers[peer_id] = process
        return process

    def restart_coordinator(self) -> Process:
        """Start the coordinator again where it was; the earlier process has ended."""
        assert self.coordinator.has_ended
        self.coordinator = self._start("coordinator", [*self._command, "--listen", self.address])
        self.coordinator.until("coordinator_started")
        return self.coordinator

    def add_all(self, *flags: str, path: Sequence[Path] = ()) -> None:
        for k in range(self.config.peers):
            self.add(f"peer-{k}", *flags, path=path)

    def until_step(self, step: int, *but: str) -> None:
        """Wait until all peers, but for some, have announced this step, or a later one."""
        for peer_id, process in self.peers.items():
            if peer_id not in but:
                process.until_step(step)

    def poll(self, condition: Callable[[], Any], what: str) -> None:
        """Ask until it is so: for what a process does not announce, but tells who asks."""
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, f"asked in vain whether {what}"

    def finish(self) -> dict[str, Event]:
        """Wait until all peers have ended well; returns their `peer_finished` events."""
        for process in self.peers.values():
            code = process.exit_code()
            assert code == 0, f"exit code {code}; {process}"
        finished = {peer: p.events("peer_finished") for peer, p in self.peers.items()}
        assert all(len(events) == 1 for events in finished.values()), finished
        return {peer: events[0] for peer, events in finished.items()}

    def model(self, peer_id: str) -> dict[str, Tensor]:
        """The final model as that peer wrote it."""
        return load_file(self.directory / peer_id / "model.safetensors")

    def steps(self, peer_id: str) -> dict[int, Event]:
        """A peer's `step` events by step."""
        return {event["step"]: event for event in self.peers[peer_id].events("step")}

    def swarm_metrics(self, peer_id: str) -> dict[int, Event]:
        """What a peer knew of the swarm's metrics in the end, by the evaluation's step."""
        return {event["step"]: event for event in self.peers[peer_id].events("swarm_metrics")}

    def stop(self) -> None:
        for process in (*self.peers.values(), self.coordinator):
            if not process.has_ended:
                with contextlib.suppress(ProcessLookupError):  # it has ended just now by itself
                    process.send(signal.SIGKILL)
        for process in (*self.peers.values(), self.coordinator):
            process.exit_code()

    def _start(
        self,
        name: str,
        arguments: list[str],
        command: str = "",
        path: Sequence[Path] = (),
        events_to: str = "",
    ) -> Process:
        log = self.directory / f"{name}.log"
        given = [command or name, "--json", *arguments]
        return Process(self._zygote, name, given, log, self._news, path, events_to)


LISTEN = ("--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0", "--reflection")

Daemons = Callable[..., Swarm]


TASK = """
import time
from torch import nn
from peer.tasks.digits import Digits

class Theirs(Digits):
    name = "theirs"
{methods}
"""
MODEL = """
    def model(self):
        return nn.Sequential(nn.Flatten(), nn.Linear(64, {hidden}), nn.Linear({hidden}, 10))
"""


@pytest.fixture
def install(tmp_path: Path) -> Callable[..., Path]:
    """Makes a folder with a package that offers the task `theirs`: digits, with so many `hidden`
    units in place of its own network, and with `more` methods."""
    numbers = itertools.count()

    def install(hidden: int | None = None, more: str = "") -> Path:
        folder = tmp_path / f"theirs-{next(numbers)}"
        metadata = folder / "theirs-1.0.dist-info"
        metadata.mkdir(parents=True)
        methods = more if hidden is None else MODEL.format(hidden=hidden) + more
        (folder / "theirs.py").write_text(TASK.format(methods=methods), encoding="utf-8")
        (metadata / "METADATA").write_text("Name: theirs\nVersion: 1.0\n", encoding="utf-8")
        (metadata / "entry_points.txt").write_text(
            "[relayswarm.tasks]\ntheirs = theirs:Theirs\n", encoding="utf-8"
        )
        return folder

    return install


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Waits here have deadlines of their own, which say what was waited for."""
    for item in items:
        if item.path.parent == Path(__file__).parent and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(LIMIT_S))


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    zygote = Zygote()
    yield zygote
    zygote.close()


@pytest.fixture
def daemons(zygote: Zygote, tmp_path: Path) -> Iterator[Daemons]:
    """Starts swarms: `daemons("steps=20", "topology.graph=chain", peers=4)`.

    With `start=False` the coordinator alone, with these `flags`; peers are then added one by one.
    """
    swarms: list[Swarm] = []
    numbers = itertools.count()

    def start(
        *settings: str,
        start: bool = True,
        path: Sequence[Path] = (),
        flags: Sequence[str] = (),
        **top: Any,
    ) -> Swarm:
        given = [*settings, *(f"{key}={json.dumps(value)}" for key, value in top.items())]
        config = run_config.parse("", given)
        swarm = Swarm(zygote, tmp_path / f"swarm-{next(numbers)}", config, flags)
        swarms.append(swarm)
        if start:
            allowed = ("--allow-task", swarm.config.task.name) if path else ()
            swarm.add_all(*allowed, path=path)
        return swarm

    yield start
    for swarm in swarms:
        swarm.stop()


def add_wired(
    swarm: Swarm, wires: Wires, name: str, *flags: str, path: Sequence[Path] = ()
) -> None:
    """Start a peer that reaches the others, and they it, through `wires`."""
    port = free_port()
    wires.lead(name, port)
    swarm.add(
        name,
        *("--listen", f"127.0.0.1:{port}"),
        *("--advertise", f"127.0.0.1:{wires.port_for(name)}"),
        *(("--allow-task", swarm.config.task.name) if path else ()),
        *flags,
        coordinator=f"127.0.0.1:{wires.port_for('coordinator')}",
        path=path,
    )


@pytest.fixture
def wired(daemons: Callable[..., Any]) -> Iterator[Callable[..., tuple[Any, Wires]]]:
    """Starts a swarm whose peers reach each other and the coordinator through `Wires`."""
    opened: list[Wires] = []

    def start(*settings: str, path: Sequence[Path] = ()) -> tuple[Any, Wires]:
        swarm = daemons(*settings, start=False)
        wires = Wires(lambda: {p.pid: name for name, p in swarm.peers.items()})
        opened.append(wires)
        wires.lead("coordinator", int(swarm.address.rpartition(":")[2]))
        for k in range(swarm.config.peers):
            add_wired(swarm, wires, f"peer-{k}", path=path)
        return swarm, wires

    yield start
    for wires in opened:
        wires.close()
