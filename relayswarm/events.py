"""Events of a process, for the program that started it: one JSON object a line, written at once.

A run is worth more than what is told of it: whatever becomes of the stream, the process goes on.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TextIO

from relayswarm.logs import plain
from relayswarm.net.sparing import SparingLog

log = logging.getLogger("relayswarm.events")


class EventStream:
    """Any thread may call it. Numbers that are not finite are written as null.

    Where a line cannot be written, as to a full disk, that is logged, and events are left out until
    there is room again; then their number is logged. Lines stay whole all the same. It falls silent
    for good when the reader of a pipe has gone.
    """

    def __init__(self, stream: TextIO | None) -> None:
        """`stream` is None for a process that was started without the one that was meant."""
        self._write = _writer(stream) if stream is not None else None
        self._guard = threading.Lock()
        self._torn = b""  # what is missing of a line whose beginning is there
        self._is_lost, self._left_out = False, 0  # while none can be written
        self._sparing = SparingLog(log)

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Write an event, if that is possible now."""
        line = (json.dumps(plain(event)) + "\n").encode()
        with self._guard:
            if self._write is None:
                return
            try:
                self._put(line, self._write)
            except BrokenPipeError:  # nobody reads any more
                self._write = None
            except OSError as error:
                if not self._is_lost:
                    self._is_lost = True
                    problem = f"events cannot be written ({error.strerror or error})"
                    self._sparing.warning("lost", f"{problem}, and are left out until they can be")
            else:
                if self._is_lost:
                    text = f"events can be written again: {self._left_out} were left out"
                    self._sparing.warning("found", text)
                    self._is_lost, self._left_out = False, 0

    def _put(self, line: bytes, write: Callable[[bytes], int]) -> None:
        """Raises OSError. A line of which a part is there by then is ended the next time."""
        data, done = self._torn + line, 0
        try:
            while done < len(data):
                done += write(data[done:])
        except OSError:
            if done > len(self._torn):
                self._torn = data[done:]
            else:
                self._torn = self._torn[done:]
                self._left_out += 1
            raise
        self._torn = b""


def _writer(stream: TextIO) -> Callable[[bytes], int]:
    """What writes bytes, and returns how many: past the stream's own buffer, which forgets what it
    could not write, so that nobody knows where it broke off."""
    try:
        descriptor = stream.fileno()
    except OSError:  # it has none (`io.UnsupportedOperation`)

        def write(data: bytes) -> int:
            stream.write(data.decode())
            stream.flush()
            return len(data)

        return write
    return partial(_write_through, stream, descriptor)


def _write_through(stream: TextIO, descriptor: int, data: bytes) -> int:
    stream.flush()  # what others have printed
    return os.write(descriptor, data)
