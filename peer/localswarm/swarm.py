"""Coordinator and peers as processes on this machine, and their events as one stream.

What belongs here: who is started when, and what the end of a process means for the others.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from peer.algorithms.core import peer_order
from peer.localswarm.process import Child, Ended, Inbox, Said, own_command
from peer.training.trainer import folder_of
from relayswarm.config import RunConfig
from relayswarm.errors import ExitCode, JoinError, QuorumError, RelayswarmError

COORDINATOR = "coordinator"
LOGS, STATE, CONFIG = "logs", "state", "run.toml"

GRACE_S = 10.0
"""Children that were asked to end get so long, all together, before they are killed."""


class Commands(Protocol):
    """The command lines of the processes."""

    def coordinator(self) -> Sequence[str]: ...

    def peer(self, peer: str, coordinator: str) -> Sequence[str]: ...


class LocalCommands:
    """`relayswarm coordinator` and `relayswarm peer`, on loopback with ports the system chooses."""

    def __init__(
        self, directory: Path, device: str, data_dir: Path | None, config: RunConfig
    ) -> None:
        self._directory = directory
        # whoever starts both says what may be imported
        task, algorithm = config.task.name, config.algorithm.name
        file = ("--task-file", config.task.file) if config.task.file else ()
        self._allowed = ("--allow-task", task, "--allow-algorithm", algorithm, *file)
        self._device = device
        self._data_dir = data_dir
        self._config = config

    def coordinator(self) -> Sequence[str]:
        config = str(self._directory / CONFIG)
        listen = ("--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0")
        return own_command("coordinator", "--config", config, *listen, "--json")

    def peer(self, peer: str, coordinator: str) -> Sequence[str]:
        state = str(self._directory / STATE / peer)
        options = ["--id", peer, "--coordinator", coordinator, "--state-dir", state]
        options += ["--device", self._device, "--json", *self._allowed]
        if peer in self._config.data.forward:
            options += ["--role", "forward"]
        if self._data_dir is not None:
            options += ["--data-dir", str(folder_of(self._config, self._data_dir, peer))]
        return own_command("peer", *options)


class LocalSwarm:
    """The processes of one run. Use as a context manager: leaving it ends them all.

    `start` starts the coordinator; iterating over `events` starts the peers once it listens, and
    yields every event until the last peer has ended. Besides the processes' own events there is
    `peer_exited` (peer, exit_code, stderr) for a peer that ended before it had finished, and
    `coordinator_exited` (exit_code, stderr) for a coordinator that ended before the peers did.
    """

    def __init__(self, commands: Commands, peers: Sequence[str], logs: Path) -> None:
        self._commands = commands
        self._peers = tuple(peers)
        self._logs = logs
        self._inbox: Inbox = queue.Queue()
        self._children: dict[str, Child] = {}
        self._running: set[str] = set()  # peers whose end has not been heard of
        self._finished: set[str] = set()
        self._has_begun = False  # a topology was published
        self._overdue_at: float | None = None  # who has not ended by then hangs

    def __enter__(self) -> LocalSwarm:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start the coordinator."""
        self._start(COORDINATOR, self._commands.coordinator())

    def events(self, idle_s: float = 0.25) -> Iterator[Mapping[str, Any] | None]:
        """Every event as it comes; None after `idle_s` seconds without one, for a clock's sake.

        Raises JoinError or another RelayswarmError when the run cannot begin, QuorumError when no
        peer has finished.
        """
        while not self._is_over:
            try:
                item = self._inbox.get(timeout=idle_s)
            except queue.Empty:
                yield None
            else:
                yield from self._take(item)
        # Of those that finished nothing is missing: on a busy machine their processes end slowly.
        for hung in sorted(self._running - self._finished, key=peer_order):
            yield self._exited(hung, None)
        if not self._finished:
            raise QuorumError(f"no peer finished; their logs are in {self._logs}")

    def stop(self) -> None:
        """Ask all children to end, and kill those that do not. Returns when all have ended.

        The peers first, so that they can say goodbye to the coordinator.
        """
        deadline = time.monotonic() + GRACE_S
        coordinator = [child for name, child in self._children.items() if name == COORDINATOR]
        peers = [child for name, child in self._children.items() if name != COORDINATOR]
        for group in (peers, coordinator):
            for child in group:
                if child.is_alive:
                    child.terminate()
            for child in group:
                child.end(deadline - time.monotonic())

    def last_words(self) -> Iterator[Mapping[str, Any]]:
        """Events that came while the swarm was being stopped."""
        while not self._inbox.empty():
            item = self._inbox.get()
            if isinstance(item, Said):
                yield item.event

    @property
    def _is_over(self) -> bool:
        """Whether all peers have ended, or the run has and the rest had time enough to: a peer
        that was stopped, or hangs, would keep us waiting for ever."""
        if self._overdue_at is not None and time.monotonic() > self._overdue_at:
            return True
        return self._has_peers and not self._running and self._inbox.empty()

    @property
    def _has_peers(self) -> bool:
        return len(self._children) > 1

    def _start(self, name: str, command: Sequence[str]) -> None:
        self._children[name] = Child(name, command, self._logs / f"{name}.log", self._inbox)

    def _take(self, item: Said | Ended) -> Iterator[Mapping[str, Any]]:
        if isinstance(item, Ended):
            yield from self._ended(item)
            return
        event = item.event
        if item.child == COORDINATOR and event["event"] == "finished":
            self._overdue_at = time.monotonic() + GRACE_S
            return  # the run's own `finished` is yet to come, with the report
        yield event
        match event["event"]:
            case "coordinator_started":
                self._start_peers(event["address"])
            case "topology":
                self._has_begun = True
            case "peer_finished":
                self._finished.add(item.child)

    def _start_peers(self, coordinator: str) -> None:
        for peer in self._peers:
            self._running.add(peer)
            self._start(peer, self._commands.peer(peer, coordinator))

    def _ended(self, end: Ended) -> Iterator[Mapping[str, Any]]:
        self._running.discard(end.child)
        if end.child in self._finished and end.exit_code == 0:
            return
        stderr = self._children[end.child].last_lines()
        if end.child == COORDINATOR:
            yield {"event": "coordinator_exited", "exit_code": end.exit_code, "stderr": stderr}
        elif end.child not in self._finished:
            yield self._exited(end.child, end.exit_code)
        if not self._has_begun:
            raise could_not_begin(end, stderr)

    def _exited(self, peer: str, exit_code: int | None) -> Mapping[str, Any]:
        stderr = self._children[peer].last_lines()
        return {"event": "peer_exited", "peer": peer, "exit_code": exit_code, "stderr": stderr}


def could_not_begin(end: Ended, stderr: Sequence[str]) -> RelayswarmError:
    """The error of a run of which a process ended before it began, in that process's words."""
    words = stderr[-1] if stderr else "without a word"
    text = f"{end.child} ended before the run began (exit code {end.exit_code}): {words}"
    error: RelayswarmError = JoinError(text)
    if end.exit_code == ExitCode.LOST_QUORUM:
        error = QuorumError(text)
    elif end.exit_code == ExitCode.USAGE:
        error = RelayswarmError(text)
    return error
