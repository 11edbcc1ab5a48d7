"""Serves ReadModel: the live model as it was at one moment, in chunks, resumable.

At most `KEPT` snapshots are held, each the size of the model; a new reader gets a new one unless
there is one of just now, and the oldest that nobody reads is forgotten. While all are being read,
the next reader has to come back. So however many ask, and whatever for, training is held up by no
more than one copy of the model in `FRESH_S` seconds.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

from xxhash import xxh3_64_intdigest

from peer.algorithms.core import PeerId
from peer.codec import bytes_of, default_format
from peer.transport.account import Account
from peer.transport.contract import Contract, Snapshot
from peer.transport.wire import CHUNK_BYTES, FORMATS, PREFIX_BYTES, chunk_bytes
from relayswarm.peer.v1 import peer_pb2 as pb

KEPT = 2
READERS = 4  # more would take threads and bandwidth from training
FRESH_S = 0.5  # so long a snapshot is as good as a new one


class BusyError(Exception):
    """All that may be read at a time is being read."""


class ForgottenError(Exception):
    """There is no snapshot of that id."""


@dataclass
class KeptSnapshot:
    """A snapshot under its id, with its bytes."""

    id: int
    snapshot: Snapshot
    taken_at: float  # monotonic seconds
    readers: int = field(default=0)

    @cached_property
    def payload(self) -> memoryview:
        """The vector in its wire format."""
        vector = self.snapshot.vector
        return bytes_of(vector.to("cpu", default_format(vector.dtype).dtype).contiguous())

    @cached_property
    def xxh3(self) -> int:
        """Checksum of the whole payload."""
        return xxh3_64_intdigest(self.payload)

    def responses(
        self, contract: Contract, peer: PeerId, offset: int, account: Account
    ) -> Iterator[bytes]:
        """Header, chunks from `offset` on, trailer; serialized. Ends early if `account` does."""
        yield pb.ReadModelResponse(header=self._header(contract, peer)).SerializeToString()
        left = len(self.payload) - offset
        for chunk in account.chunks(self._chunks(offset), left, 0):
            left -= len(chunk) - PREFIX_BYTES
            yield chunk
        if left:
            return
        trailer = pb.Trailer(xxh3=self.xxh3)
        yield pb.ReadModelResponse(trailer=trailer).SerializeToString()

    def _chunks(self, offset: int) -> Iterator[bytes]:
        for start in range(offset, len(self.payload), CHUNK_BYTES):
            yield chunk_bytes(start, self.payload[start : start + CHUNK_BYTES])

    def _header(self, contract: Contract, peer: PeerId) -> pb.ModelHeader:
        return pb.ModelHeader(
            snapshot_id=self.id,
            run_id=contract.run_id,
            peer_id=peer,
            step=self.snapshot.step,
            codec=pb.Codec(format=FORMATS[default_format(self.snapshot.vector.dtype)]),
            payload_bytes=len(self.payload),
            model_fingerprint=contract.fingerprint,
            tensors=[pb.TensorSpec(name=n, shape=s) for n, s in self.snapshot.tensors],
        )


class SnapshotShelf:
    """Keeps the newest snapshots for readers that come back."""

    def __init__(self, take: Callable[[], Snapshot], fresh_s: float = FRESH_S) -> None:
        self._take = take
        self._fresh_s = fresh_s
        self._guard = threading.Lock()
        self._taking = threading.Lock()  # one at a time; it may wait for the end of a step
        self._reading = 0  # those who wait for a snapshot included
        self._kept: dict[int, KeptSnapshot] = {}

    @contextmanager
    def reading(self, snapshot_id: int) -> Iterator[KeptSnapshot]:
        """The snapshot of that id, or a new one for id 0.

        Raises ForgottenError for an id that is not kept, BusyError if too many are reading.
        """
        with self._guard:
            if self._reading >= READERS:
                raise BusyError
            self._reading += 1
        try:
            kept = self._old(snapshot_id) if snapshot_id else self._new()
            try:
                yield kept
            finally:
                with self._guard:
                    kept.readers -= 1
        finally:
            with self._guard:
                self._reading -= 1

    def _old(self, snapshot_id: int) -> KeptSnapshot:
        with self._guard:
            kept = self._kept.get(snapshot_id)
            if kept is None:
                raise ForgottenError
            kept.readers += 1
            return kept

    def _new(self) -> KeptSnapshot:
        with self._taking:
            with self._guard:
                newest = next(reversed(self._kept.values()), None)
                if newest and time.monotonic() - newest.taken_at < self._fresh_s:
                    newest.readers += 1
                    return newest
                self._make_room()
            kept = KeptSnapshot(_new_id(), self._take(), time.monotonic(), readers=1)
            with self._guard:
                self._kept[kept.id] = kept
        return kept

    def _make_room(self) -> None:
        if len(self._kept) < KEPT:
            return
        idle = [id for id, kept in self._kept.items() if not kept.readers]
        if not idle:
            raise BusyError
        del self._kept[idle[0]]


def _new_id() -> int:
    """Not counted but drawn: a restarted peer must not take another's place."""
    return secrets.randbits(63) | 1
