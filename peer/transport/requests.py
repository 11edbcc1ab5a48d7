"""What a call sends that is still to be decided when it begins."""

from __future__ import annotations

import threading
from collections.abc import Iterator

from peer.transport.contract import Reports


class Requests:
    """What a call sends: the parts that were put in last, and then whatever is put in next."""

    def __init__(self, reports: Reports) -> None:
        self._reports = reports
        self._changed = threading.Condition()
        self._parts: Iterator[bytes] | None = None
        self._wire_format = ""
        self._ended = False

    def put(self, parts: Iterator[bytes], wire_format: str = "") -> None:
        """Send these now; what is left of those before them is not. With a format: count them."""
        with self._changed:
            self._parts, self._wire_format = parts, wire_format
            self._changed.notify_all()

    def end(self) -> None:
        """Nothing more will be put in."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def __iter__(self) -> Requests:
        return self

    def __next__(self) -> bytes:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._parts is not None or self._ended)
                parts, wire_format = self._parts, self._wire_format
            if parts is None:
                raise StopIteration
            part = next(parts, None)
            if part is not None:
                if wire_format:
                    self._reports.bytes_out(len(part), wire_format)
                return part
            with self._changed:
                if self._parts is parts:
                    self._parts = None
