"""Calls without a network: what targets hand to services, and how inputs hold several messages."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

LONGEST = 4096  # bytes of an input


class Aborted(Exception):
    """How a call ends with a status."""


class Context:
    """Of a call without TLS."""

    def abort(self, code: object, text: str) -> None:
        assert len(text) < 2000, "words from outside, in full"
        raise Aborted(code, text)

    def auth_context(self) -> Mapping[str, Any]:
        return {}

    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"

    def add_callback(self, callback: Callable[[], object]) -> bool:  # noqa: ARG002
        return True

    def cancel(self) -> None: ...

    def is_active(self) -> bool:
        return True


def packed(requests: Iterable[bytes]) -> bytes:
    return b"".join(struct.pack("<H", len(request)) + request for request in requests)


def unpacked(data: bytes) -> Iterator[bytes]:
    while len(data) >= 2:
        (size,) = struct.unpack_from("<H", data)
        yield data[2 : 2 + size]
        data = data[2 + size :]
