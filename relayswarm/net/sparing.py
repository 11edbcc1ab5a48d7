"""Log lines that callers from outside can provoke: a few of each kind, however many call."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

EVERY_S = 10.0
LONGEST = 500  # characters of a line


@dataclass(slots=True)
class _Kind:
    next_at: float = 0.0
    held_back: int = 0


class SparingLog:
    """At most one line of each kind in `every_s` seconds; the next one counts those held back.

    Kinds come from a short list of our own, never from outside.
    """

    def __init__(
        self,
        log: logging.Logger,
        every_s: float = EVERY_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._log, self._every_s, self._clock = log, every_s, clock
        self._kinds: dict[str, _Kind] = {}
        self._guard = threading.Lock()

    def warning(self, kind: str, text: str) -> None:
        """Log it, or count it."""
        self._tell(logging.WARNING, kind, text)

    def exception(self, kind: str, text: str) -> None:
        """Log it as an error with the traceback of the one that is being handled, or count it."""
        self._tell(logging.ERROR, kind, text, traceback=True)

    def _tell(self, level: int, kind: str, text: str, *, traceback: bool = False) -> None:
        with self._guard:
            state, now = self._kinds.setdefault(kind, _Kind()), self._clock()
            if now < state.next_at:
                state.held_back += 1
                return
            more, state.held_back, state.next_at = state.held_back, 0, now + self._every_s
        rest = f" (and {more} more like it)" if more else ""
        self._log.log(level, "%s%s", shortened(text), rest, exc_info=traceback)


def shortened(text: str) -> str:
    """Text with words from outside, no longer than a line of a log, or an answer, may be, and
    without line breaks and what else would steer a terminal."""
    line = text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
    return "".join(character if character.isprintable() else "?" for character in line)
