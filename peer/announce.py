"""A process's events as JSON lines on standard output, for whoever started it."""

from __future__ import annotations

import json
import math
import sys
import threading
from typing import Any, TextIO


class Announcer:
    """Writes one JSON object a line, flushed at once; silent unless asked to speak."""

    def __init__(self, *, speaks: bool, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stdout
        self._speaks = speaks
        self._guard = threading.Lock()

    def __call__(self, event: str, **fields: Any) -> None:
        if not self._speaks:
            return
        line = json.dumps({"event": event, **_plain(fields)})
        with self._guard:
            try:
                self._stream.write(line + "\n")
                self._stream.flush()
            except BrokenPipeError:  # nobody listens any more
                self._speaks = False


def _plain(value: Any) -> Any:
    """JSON has no NaN: a number that is not finite becomes null."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return finite(value) if isinstance(value, float) else value


def finite(value: float) -> float | None:
    """None in place of NaN and infinity."""
    return value if math.isfinite(value) else None
