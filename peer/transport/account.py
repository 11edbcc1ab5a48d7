"""The one place through which every payload passes on its way out: here it is accounted for.

What the record says is on its way to the file before the last byte of the payload is handed to the
network; of one that takes several chunks, that it has begun before the first.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

from peer.codec import Bytes
from peer.transport.contract import Digest, Ledger, Parcel
from peer.transport.wire import PREFIX_BYTES


class UnrecordedError(Exception):
    """A payload cannot be recorded, so that it must not leave."""


class CommonDigest:
    """Of payloads that are equal byte for byte, as when all neighbours get the same: whichever
    stream is first at a chunk has it digested, and the others leave it out. Thread-safe."""

    def __init__(self, digest: Digest) -> None:
        self._digest, self._bytes = digest, 0
        self._guard = threading.Lock()

    def update(self, offset: int, data: Bytes) -> None:
        """The bytes from `offset` on, behind all before it."""
        with self._guard:
            if offset == self._bytes:
                self._digest.update(data)
                self._bytes += len(data)

    def hexdigest(self) -> str:
        """Of all bytes, once a stream has given them all."""
        return self._digest.hexdigest()


class Account:
    """Of one payload to one receiver. Without a ledger it keeps none. `common` is that of all who
    get the same."""

    def __init__(
        self, ledger: Ledger | None, parcel: Parcel, common: CommonDigest | None = None
    ) -> None:
        self._ledger, self._parcel, self._common = ledger, parcel, common

    def whole(self, payload: Bytes, attempt: int, is_plain: bool = False) -> None:
        """It leaves in one piece; `is_plain`: as it would for all. Raises UnrecordedError."""
        if self._ledger is None:
            return
        digest = self._digest(self._ledger, is_plain)
        digest.update(0, payload)
        parcel = self._parcel._replace(attempt=attempt, bytes=len(payload))
        if not self._ledger.leaving(parcel, digest.hexdigest()):
            raise UnrecordedError

    def chunks(
        self, requests: Iterator[bytes], total: int, attempt: int, is_plain: bool = False
    ) -> Iterator[bytes]:
        """It leaves in these chunks (`wire.chunk_bytes`), of `total` bytes together; `is_plain`: as
        it would for all. Ends early if that cannot be recorded."""
        if self._ledger is None:
            yield from requests
            return
        parcel = self._parcel._replace(attempt=attempt, bytes=total)
        digest, left = self._digest(self._ledger, is_plain), total
        for request in requests:
            data = memoryview(request)[PREFIX_BYTES:]
            if left == total and len(data) < total and not self._ledger.leaving(parcel, None):
                return
            digest.update(total - left, data)
            left -= len(data)
            if not left and not self._ledger.leaving(parcel, digest.hexdigest()):
                return
            yield request

    def _digest(self, ledger: Ledger, is_plain: bool) -> CommonDigest:
        known = self._common if is_plain else None
        return known or CommonDigest(ledger.new_digest())
