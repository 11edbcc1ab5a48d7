"""A process's events: JSON lines on standard output for whoever started it, and its log."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from relayswarm import logs
from relayswarm.events import EventStream

log = logging.getLogger("relayswarm.peer")


def _numbers(metrics: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in metrics.items())


LOGGED: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "peer_started": lambda e: f"{e['peer']} listens at {e['address']}",
    "waiting": lambda e: f"waiting for {e['needed'] - e['present']} of {e['needed']} peers",
    "evaluation": lambda e: f"step {e['step']}: {_numbers(e['metrics'])}",
    "peer_finished": lambda e: f"all {e['steps']} steps done: {_numbers(e['metrics'])}",
}
"""Events that are worth a line in the log, and that line. Steps are not: metrics tell of them."""

KEPT = ("peer", "step", "steps", "metrics", "address", "metrics_address", "present", "needed")
"""Fields that such a line has as JSON; all are in the event."""


class Announcer:
    """Writes events, if asked to speak; logs what matters."""

    def __init__(self, *, speaks: bool, stream: TextIO | None = None) -> None:
        """`stream` is standard output if None."""
        self._events = EventStream(stream or sys.stdout) if speaks else None

    def __call__(self, event: str, **fields: Any) -> None:
        if event in LOGGED:
            kept = {name: fields[name] for name in KEPT if name in fields}
            logs.event(log, logging.INFO, event, LOGGED[event](fields), **kept)
        if self._events:
            self._events({"event": event, **fields})
