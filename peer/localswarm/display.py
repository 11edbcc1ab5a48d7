"""What is seen of a run while it goes on: a live table, plain lines, or JSON.

What belongs here: when something is printed, and where. A `Display` hears of every event after
`Progress` has taken it in.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TextIO

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBars

from peer.localswarm import render
from peer.progress import Progress
from relayswarm.events import EventStream

FRAME_S = 0.2  # between two frames of the live table
PLAIN_LINES = 10  # of progress, in a whole run


class Display(Protocol):
    """Where a run is shown. Use as a context manager."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def event(self, event: Mapping[str, Any] | None) -> None:
        """Something happened; None: some time has passed."""

    def baseline(self, name: str, done: int, steps: int) -> None:
        """The training in one place has done so many steps."""

    def finished(self, report: Mapping[str, Any], directory: Path) -> None:
        """The report is written."""


def choose_display(progress: Progress, *, as_json: bool) -> Display:
    """The display that suits standard output."""
    if as_json:
        return JsonLines(sys.stdout)
    console = Console()
    return LiveTable(progress, console) if console.is_terminal else PlainLines(progress, console)


class JsonLines:
    """One JSON object a line, flushed, and nothing else."""

    def __init__(self, stream: TextIO) -> None:
        self._events = EventStream(stream)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is left open."""

    def event(self, event: Mapping[str, Any] | None) -> None:
        if event is not None:
            self._events(event)

    def baseline(self, name: str, done: int, steps: int) -> None:
        """Not an event of the run."""

    def finished(self, report: Mapping[str, Any], directory: Path) -> None:  # noqa: ARG002
        self.event({"event": "finished", "report": report})


class PlainLines:
    """A line now and then: for logs, and terminals that can do no more."""

    def __init__(self, progress: Progress, console: Console) -> None:
        self._progress = progress
        self._console = console
        self._tenths = 0
        self._swarm = ""
        self._last = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is left open."""

    def event(self, event: Mapping[str, Any] | None) -> None:
        if event is None:
            return
        match event["event"]:
            case "coordinator_started":
                self._say(f"coordinator at {event['address']}")
            case "waiting" if "members" in event:
                self._say(render.waiting_line(self._progress))
            case "topology":
                self._say(render.topology_line(event))
                self._console.print(*render.trees(event), sep="\n")
            case "step" | "peer_finished":
                self._stepped()
            case "peer_exited" | "coordinator_exited":
                for line in render.exit_lines(event):
                    self._say(line)

    def baseline(self, name: str, done: int, steps: int) -> None:
        if done == steps:
            self._say(f"{name}: {done} steps done")

    def finished(self, report: Mapping[str, Any], directory: Path) -> None:
        self._console.print(render.summary(report, directory))

    def _stepped(self) -> None:
        tenths = self._progress.steps_done * PLAIN_LINES // self._progress.steps
        if tenths > self._tenths:
            self._tenths = tenths
            self._say(render.step_line(self._progress))
            swarm = render.swarm_line(self._progress.swarm) if self._progress.swarm else ""
            if swarm != self._swarm:
                self._swarm = swarm
                self._say(swarm)

    def _say(self, line: str) -> None:
        if line != self._last:
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)
        self._last = line


class LiveTable:
    """A table that changes in place, for terminals."""

    def __init__(self, progress: Progress, console: Console) -> None:
        self._progress = progress
        self._console = console
        self._live = Live(console=console, auto_refresh=False)
        self._bars = ProgressBars(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TimeRemainingColumn(),
            console=console,
            auto_refresh=False,
        )
        self._tasks: dict[str, Any] = {}
        self._shown_at = 0.0

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop_table()
        self._bars.stop()

    def event(self, event: Mapping[str, Any] | None) -> None:
        if event is not None and event["event"] in ("peer_exited", "coordinator_exited"):
            for line in render.exit_lines(event):
                self._console.print(line, highlight=False, markup=False)
        if self._is_due():
            self._live.update(render.live_view(self._progress), refresh=True)

    def baseline(self, name: str, done: int, steps: int) -> None:
        if name not in self._tasks:
            self._stop_table()
            self._bars.start()
            self._tasks[name] = self._bars.add_task(name, total=steps)
        self._bars.update(self._tasks[name], completed=done)
        if done == steps or self._is_due():
            self._bars.refresh()

    def finished(self, report: Mapping[str, Any], directory: Path) -> None:
        self._stop_table()
        self._bars.stop()
        self._console.print(render.summary(report, directory))

    def _stop_table(self) -> None:
        if self._live.is_started:
            self._live.update(render.live_view(self._progress), refresh=True)
            self._live.stop()

    def _is_due(self) -> bool:
        now = time.monotonic()
        if now - self._shown_at < FRAME_S:
            return False
        self._shown_at = now
        return True
