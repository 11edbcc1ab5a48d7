"""One message coming in: chunks are checked, decoded and put together in its buffer."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor
from xxhash import xxh3_64

from peer.algorithms.core import Verdict
from peer.codec import Bytes, Format, decode, is_finite
from peer.codec.edges import Coding, Key, Lattice, payload_bytes
from peer.codec.lattice import BLOCK, FULL_PRECISION, Decoder, encoded_bytes
from peer.process import compute_alone
from peer.transport.wire import MalformedError


class Assembly(ABC):
    """Fills `buffer`, shape (sections * elements,), from a payload written like `coding`.

    Chunks may end anywhere, also within an element: foreign encoders are free in that.
    """

    def __init__(self, buffer: Tensor, sections: int, coding: Coding) -> None:
        compute_alone()
        self._buffer = buffer
        self._sections = sections
        self._payload_bytes = payload_bytes(coding, sections, buffer.numel() // sections)
        self._received = 0  # bytes
        self._decoded = 0  # elements
        self._carry = b""  # of a unit whose end has not come
        self._xxh3 = xxh3_64()

    def add(self, offset: int, data: Bytes) -> Verdict:
        """Take the chunk that begins at byte `offset`; anything but ACCEPTED ends the message.

        Raises MalformedError if it leaves a gap or overlaps what is there.
        """
        if offset != self._received:
            raise MalformedError(f"offset = {offset}: expected {self._received}; send in order")
        self._received += len(data)
        if self._received > self._payload_bytes:
            return Verdict.BAD_LENGTH
        self._xxh3.update(data)
        joined = memoryview(self._carry + bytes(data) if self._carry else data)
        used, verdict = self._decode(joined)
        self._carry = bytes(joined[used:])
        return verdict

    def finish(self, xxh3: int) -> Verdict:
        """The trailer is in: is the message whole and undamaged?"""
        if self._received != self._payload_bytes:
            return Verdict.BAD_LENGTH
        return Verdict.ACCEPTED if xxh3 == self._xxh3.intdigest() else Verdict.CHECKSUM

    def take(self) -> tuple[Tensor, ...]:
        """One vector of shape (elements,) for each section, in the buffer, which is let go."""
        vectors = self._buffer.view(self._sections, -1).unbind(0)
        self.release()
        return vectors

    def release(self) -> None:
        """Let the buffer go. Said aloud, as a traceback may keep this object for long."""
        self._buffer = self._buffer.new_empty(0)

    @abstractmethod
    def _decode(self, data: memoryview) -> tuple[int, Verdict]:
        """Decode what is whole into the buffer, from element `_decoded` on; returns how many bytes
        that took."""


class PlainAssembly(Assembly):
    """Of numbers one after the other."""

    def __init__(self, buffer: Tensor, sections: int, fmt: Format) -> None:
        super().__init__(buffer, sections, fmt)
        self._format = fmt

    def _decode(self, data: memoryview) -> tuple[int, Verdict]:
        elements = len(data) // self._format.itemsize
        part = self._buffer[self._decoded : self._decoded + elements]
        used = elements * self._format.itemsize
        finite = decode(data[:used], self._format, part)
        self._decoded += elements
        return used, Verdict.ACCEPTED if finite else Verdict.NOT_FINITE


class LatticeAssembly(Assembly):
    """Of blocks on the lattice, each decoded next to its part of the key as soon as it is whole.

    After DECODE_FAILED `wanted_bits` are what to ask for; in the end `distances` has the largest
    distance from the key, for each section.
    """

    def __init__(self, buffer: Tensor, lattice: Lattice, key: Key) -> None:
        super().__init__(buffer, len(key.vectors), lattice)
        self._bits = lattice.bits
        self._elements = buffer.numel() // self._sections
        self._decoders: list[Decoder] = key.decoders(lattice)
        self.wanted_bits = FULL_PRECISION

    @property
    def distances(self) -> tuple[float, ...]:
        return tuple(decoder.distance for decoder in self._decoders)

    def release(self) -> None:
        super().release()
        self._decoders = []

    def _decode(self, data: memoryview) -> tuple[int, Verdict]:
        used = 0
        while self._decoded < self._buffer.numel():
            section, start = divmod(self._decoded, self._elements)
            elements = min(BLOCK, self._elements - start)
            end = used + encoded_bytes(elements, self._bits)
            if end > len(data):
                break
            part = self._buffer[self._decoded : self._decoded + elements]
            decoder = self._decoders[section]
            if not decoder.decode(data[used:end], start, part):
                self.wanted_bits = decoder.wanted_bits
                return used, Verdict.DECODE_FAILED
            if not is_finite(part):  # beyond what the model's own type holds
                return used, Verdict.NOT_FINITE
            used, self._decoded = end, self._decoded + elements
        return used, Verdict.ACCEPTED
