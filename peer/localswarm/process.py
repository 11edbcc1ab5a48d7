"""One child process: started, listened to, ended.

A child writes events as JSON lines to its standard output and log lines to its standard error,
which goes to a file. It must not outlive us, however we end: its standard input is a pipe of which
we alone hold the other end, as LIFELINE tells it, and it ends itself when that pipe is closed
(`end_with_parent`). The kernel closes it even when we are killed, on every system that has pipes.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peer
from relayswarm.variables import LIFELINE, PREFIX

LAST_LINES = 5  # of a log, shown when its process ends before its time


@dataclass(frozen=True, slots=True)
class Said:
    """A child wrote an event."""

    child: str
    event: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Ended:
    """A child ended, and everything it wrote before has been heard."""

    child: str
    exit_code: int


Inbox = queue.Queue[Said | Ended]


class Child:
    """A running child process. Only this object ever signals it."""

    def __init__(self, name: str, command: Sequence[str], log: Path, inbox: Inbox) -> None:
        self.name = name
        self._log_path = log
        self._inbox = inbox
        with log.open("wb") as stderr:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=environment(),
                start_new_session=True,  # Ctrl+C is ours to pass on
            )
        self._listener = threading.Thread(target=self._listen, name=f"from {name}", daemon=True)
        self._listener.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def terminate(self) -> None:
        """Ask it to end."""
        self._process.terminate()

    def end(self, timeout_s: float) -> None:
        """Wait so long for its end, then kill it; afterwards its last words are in the inbox."""
        try:
            self._process.wait(max(0.0, timeout_s))
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._process.wait()
        self._listener.join()
        assert self._process.stdin
        self._process.stdin.close()

    def last_lines(self) -> list[str]:
        """The end of its log."""
        text = self._log_path.read_text(encoding="utf-8", errors="replace")
        return text.splitlines()[-LAST_LINES:]

    def _listen(self) -> None:
        stdout = self._process.stdout
        assert stdout
        with stdout:
            for line in stdout:
                if (event := _event(line)) is not None:
                    self._inbox.put(Said(self.name, event))
        self._inbox.put(Ended(self.name, self._process.wait()))


def _event(line: bytes) -> Mapping[str, Any] | None:
    """The event in a line; None for what a task printed, which is none of ours."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and "event" in event else None


def environment() -> dict[str, str]:
    """Of our children: our own code, one thread each (they share our cores), and the lifeline.

    Variables that stand for settings or options are ours: children are told everything.
    """
    code = str(Path(peer.__file__).parents[1])
    inherited = os.environ.get("PYTHONPATH")
    others = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    return {
        **others,
        LIFELINE: "stdin",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, (code, inherited))),
        "PYTHONUNBUFFERED": "1",
    }


def own_command(*arguments: str) -> list[str]:
    """The command line of a `relayswarm` child; modules in the current folder don't get in."""
    return [sys.executable, "-P", "-m", "peer.cli", *arguments]


def end_with_parent() -> None:
    """In a child: ask ourselves to end as soon as the parent is gone. Elsewhere: do nothing."""
    if os.environ.pop(LIFELINE, None) == "stdin":
        threading.Thread(target=_await_end_of_parent, name="lifeline", daemon=True).start()


def _await_end_of_parent() -> None:
    with contextlib.suppress(OSError):
        while os.read(0, 1024):
            pass
    os.kill(os.getpid(), signal.SIGTERM)
