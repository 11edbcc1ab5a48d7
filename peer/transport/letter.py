"""One message on its way out: its payload is read, encoded and framed while it is sent."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeAlias

from torch import Tensor
from xxhash import xxh3_64, xxh3_64_intdigest

from peer.algorithms.core import Head, Kind
from peer.codec import Bytes, encode, tensor_of
from peer.codec.edges import Forecast, Lattice, payload_bytes
from peer.codec.lattice import BITS, BLOCK, FULL_PRECISION, Encoder
from peer.process import compute_alone
from peer.transport.account import Account
from peer.transport.contract import Contract, Outgoing, Span
from peer.transport.link import Call
from peer.transport.wire import (
    CHUNK_BYTES,
    PREFIX_BYTES,
    OpenChunk,
    chunk_bytes,
    chunk_size,
    header,
    unary_bytes,
)
from relayswarm.peer.v1 import peer_pb2 as pb

Slot: TypeAlias = tuple[Kind, int]
_Write: TypeAlias = Callable[[int, int, int], bytes | None]  # of offset, start and stop


class Letter:
    """A message to one neighbour. One below 1 MiB is read at once and sent as a whole; a larger one
    is read and encoded while it streams, so that no model-sized buffer is needed.

    How it is written is decided at each try (`write`): in the contract's format, or on the lattice.
    Without `outgoing` it is the announcement of a loss. A fault plan may want it sent `delay_s`
    later, or an `extra` copy of it, of which nothing is reported. `account` is told of every try.
    """

    def __init__(
        self,
        head: Head,
        contract: Contract,
        outgoing: Outgoing | None,
        delay_s: float = 0.0,
        extra: bool = False,
        account: Account | None = None,
    ) -> None:
        self.head = head
        self.extra = extra
        self.attempt = 0
        self.not_before = time.monotonic() + delay_s  # seconds
        self.cancelled = False
        self.call: Call | None = None
        self._contract = contract
        self._format = contract.format_of(head.kind)
        self._dtype = contract.dtype_of(head.kind)
        self._outgoing = outgoing
        self._account = account
        self._guard = threading.Lock()  # a stream that was cancelled may be reading still
        self._sent_head = head if outgoing is not None else dataclasses.replace(head, lost=True)
        self._spans = _spans(head, contract, outgoing)
        self._lattice: Lattice | None = None
        self._rounded = outgoing.lattice if outgoing is not None else None
        self.is_complete = False  # all of the last try has been handed over to be sent
        self._wanted_bits: int | None = None  # None: as the run config says
        self._values: list[Tensor] | None = None  # of a small message, one for each section
        if self._bytes < CHUNK_BYTES:
            self._values = self._read_all()
            self.close()

    @property
    def slot(self) -> Slot:
        """Messages of one slot are sent one after the other."""
        return (self.head.kind, self.head.tree)

    @property
    def small(self) -> bool:
        """Whether it goes in one request."""
        return self._values is not None

    @property
    def sections(self) -> int:
        """How many vectors are in it."""
        return len(self._spans)

    @property
    def wire_format(self) -> str:
        """What it is written in, in a word."""
        return "lattice" if self._lattice else self._format.value

    def write(self, forecast: Forecast) -> None:
        """Decide how the next try is written."""
        self.is_complete = False
        self._lattice = forecast.coding(self.head, len(self._spans), self._wanted_bits)

    def write_rounded(self) -> None:
        """Decide how the next try is written of a copy for an exchange."""
        self._lattice, self.is_complete = None, False
        if self._rounded is not None:
            bits = self._rounded.bits if self._wanted_bits is None else self._wanted_bits
            self._lattice = dataclasses.replace(self._rounded, bits=bits) if bits in BITS else None

    def reject(self, wanted_bits: int) -> bool:
        """The receiver could not decode it; returns whether another try may help."""
        if self._lattice is None:
            return False
        more = wanted_bits > self._lattice.bits
        self._wanted_bits = wanted_bits if more else FULL_PRECISION
        return True

    def close(self) -> None:
        """Nothing will be read any more."""
        with self._guard:
            if self._outgoing is not None:
                self._outgoing.close()
            self._outgoing = None

    def whole(self) -> bytes:
        """A small message as one serialized RelayUnaryRequest. Raises UnrecordedError."""
        payload = b"".join(self._encoded())
        if self._account is not None and payload:
            self._account.whole(payload, self.attempt, self._is_plain)
        return unary_bytes(self._header(), xxh3_64_intdigest(payload), payload)

    def requests(
        self,
        kind: type[pb.RelayRequest | pb.ExchangeRequest | pb.ExchangeResponse] = pb.RelayRequest,
    ) -> Iterator[bytes]:
        """The message as serialized parts of a stream. Ends early once closed."""
        self.is_complete = self._sent_head.lost
        yield kind(header=self._header()).SerializeToString()
        if self._sent_head.lost:
            return
        compute_alone()
        offset, checksum = 0, xxh3_64()
        chunks = self._chunks()
        if self._account is not None:
            chunks = self._account.chunks(chunks, self._bytes, self.attempt, self._is_plain)
        for request in chunks:
            data = memoryview(request)[PREFIX_BYTES:]
            checksum.update(data)
            offset += len(data)
            yield request
        if offset == self._bytes:
            self.is_complete = True
            yield kind(trailer=pb.Trailer(xxh3=checksum.intdigest())).SerializeToString()

    @property
    def _is_plain(self) -> bool:
        """Whether equal values are equal bytes, whoever they are for."""
        return self._lattice is None

    @property
    def _bytes(self) -> int:
        coding = self._lattice or self._format
        return sum(payload_bytes(coding, 1, span.elements) for span in self._spans)

    def _header(self) -> pb.MessageHeader:
        return header(self._sent_head, self._contract, self._spans, self.attempt, self._lattice)

    def _encoded(self) -> Iterator[Bytes]:
        """A small message's sections."""
        assert self._values is not None
        for section, vector in enumerate(self._values):
            if self._lattice is None:
                yield encode(vector, self._format)
            else:
                yield self._lattice.encoder(section).encode(vector)

    def _chunks(self) -> Iterator[bytes]:
        """The message's chunks, as requests. Ends early once closed."""
        offset = 0
        if self._values is not None:
            payload = b"".join(self._encoded())
            if payload:
                yield chunk_bytes(0, payload)
            return
        for section, span in enumerate(self._spans):
            write, step = self._writer(section)
            for start in range(0, span.elements, step):
                request = write(offset, start, min(start + step, span.elements))
                if request is None:
                    return
                yield request
                offset += len(request) - PREFIX_BYTES

    def _writer(self, section: int) -> tuple[_Write, int]:
        """What writes elements of a section, and how many at a time."""
        if self._lattice is None:
            step = chunk_size(self._bytes) // self._format.itemsize
            return partial(self._write, section), step
        encoder = self._lattice.encoder(section)
        blocks = CHUNK_BYTES // (BLOCK * self._lattice.bits // 8)
        return partial(self._write_lattice, section, encoder), blocks * BLOCK

    def _write(self, section: int, offset: int, start: int, stop: int) -> bytes | None:
        chunk = OpenChunk(offset, (stop - start) * self._format.itemsize)
        out = tensor_of(chunk.data, self._format)
        in_place = out if out.dtype == self._dtype else None  # else converted on its way there
        values = self._read(section, start, stop, in_place)
        if values is None:
            return None
        if values is not out:
            out.copy_(values)
        return chunk.close()

    def _write_lattice(
        self, section: int, encoder: Encoder, offset: int, start: int, stop: int
    ) -> bytes | None:
        values = self._read(section, start, stop)
        return None if values is None else chunk_bytes(offset, encoder.encode(values))

    def _read(
        self, section: int, start: int, stop: int, out: Tensor | None = None
    ) -> Tensor | None:
        with self._guard:
            outgoing = self._outgoing
            return None if outgoing is None else outgoing.read(section, start, stop, out)

    def _read_all(self) -> list[Tensor]:
        outgoing = self._outgoing
        if outgoing is None:
            return []
        return [outgoing.read(k, 0, span.elements) for k, span in enumerate(self._spans)]


def _spans(head: Head, contract: Contract, outgoing: Outgoing | None) -> tuple[Span, ...]:
    """Where the sections lie in the flat vector."""
    if outgoing is None:
        return ()
    span = contract.span(head.kind, head.tree)
    assert span is not None, f"{head}: the run has no such tree"
    assert span.elements == outgoing.elements, f"{head}: {outgoing.elements} elements, not {span}"
    return (span,) * outgoing.sections
