"""One message coming in: chunks are checked, decoded and put together in its buffer."""

from __future__ import annotations

import zlib

from torch import Tensor

from peer.algorithms.core import Verdict
from peer.codec import Bytes, Format, decode, is_finite
from peer.transport.wire import MalformedError


class Assembly:
    """Fills `buffer`, shape (sections * elements,), from `payload_bytes` bytes in `fmt`.

    Chunks may end anywhere, also within an element: foreign encoders are free in that.
    """

    def __init__(self, buffer: Tensor, sections: int, fmt: Format) -> None:
        self._buffer = buffer
        self._sections = sections
        self._format = fmt
        self._payload_bytes = buffer.numel() * fmt.itemsize
        self._received = 0  # bytes
        self._decoded = 0  # elements
        self._carry = b""  # of an element whose end has not come
        self._crc32 = 0

    def add(self, offset: int, data: Bytes) -> Verdict:
        """Take the chunk that begins at byte `offset`; anything but ACCEPTED ends the message.

        Raises MalformedError if it leaves a gap or overlaps what is there.
        """
        if offset != self._received:
            raise MalformedError(f"offset = {offset}: expected {self._received}; send in order")
        self._received += len(data)
        if self._received > self._payload_bytes:
            return Verdict.BAD_LENGTH
        self._crc32 = zlib.crc32(data, self._crc32)
        return self._decode(self._whole_elements(data))

    def finish(self, crc32: int) -> Verdict:
        """The trailer is in: is the message whole and undamaged?"""
        if self._received != self._payload_bytes:
            return Verdict.BAD_LENGTH
        return Verdict.ACCEPTED if crc32 == self._crc32 else Verdict.CHECKSUM

    def take(self) -> tuple[Tensor, ...]:
        """One vector of shape (elements,) for each section, in the buffer, which is let go."""
        vectors = self._buffer.view(self._sections, -1).unbind(0)
        self.release()
        return vectors

    def release(self) -> None:
        """Let the buffer go. Said aloud, as a traceback may keep this object for long."""
        self._buffer = self._buffer.new_empty(0)

    def _whole_elements(self, data: Bytes) -> Bytes:
        if not self._carry and len(data) % self._format.itemsize == 0:
            return data
        joined = self._carry + bytes(data)
        end = len(joined) - len(joined) % self._format.itemsize
        self._carry = joined[end:]
        return joined[:end]

    def _decode(self, data: Bytes) -> Verdict:
        start, self._decoded = self._decoded, self._decoded + len(data) // self._format.itemsize
        part = self._buffer[start : self._decoded]
        decode(data, self._format, part)
        return Verdict.ACCEPTED if is_finite(part) else Verdict.NOT_FINITE
