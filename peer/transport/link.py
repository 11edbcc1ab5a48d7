"""The way to a peer: the calls by which messages go out, and one to probe whether it is there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

import grpc

from peer.algorithms.core import PeerId
from peer.transport.channel import open_channel
from peer.transport.wire import SERVICE
from relayswarm.net.security import Security
from relayswarm.peer.v1 import peer_pb2 as pb

_T = TypeVar("_T")
_WayT = TypeVar("_WayT")


class Call(Protocol):
    """A message under way."""

    def result(self) -> pb.RelayResponse:
        """Wait for the answer. Raises grpc.RpcError, grpc.FutureCancelledError, NoLinkError."""

    def cancel(self) -> object:
        """Break it off, from any thread."""


class Way(Protocol):
    """What a sender sees of how its peer is reached. Requests are serialized already; `close` may
    come at any time, from any thread."""

    address: str

    @property
    def send_whole(self) -> Callable[[bytes, float], pb.RelayResponse] | None:
        """For a small message as one RelayUnaryRequest, and a time limit in seconds; None: that is
        the only part of what is sent (CollectResponse)."""

    def send(self, parts: Iterator[bytes]) -> Call:
        """A message in parts (RelayRequest)."""

    def exchange(self, parts: Iterator[bytes]) -> Any:
        """An exchange: parts as ExchangeRequest, and an iterator over those that come back, which
        has `cancel`."""

    def probe(self, timeout_s: float) -> None:
        """Raises grpc.RpcError, with UNAVAILABLE if the peer is not there."""

    def close(self) -> None:
        """Cut off what is under way."""


class Link:
    """A connection to the peer's address."""

    def __init__(self, address: str, security: Security, peer: PeerId) -> None:
        self.address = address
        self._channel = open_channel(address, security, peer)
        channel = self._channel
        self._unary: grpc.UnaryUnaryMultiCallable[bytes, pb.RelayUnaryResponse] = (
            channel.unary_unary(f"/{SERVICE}/RelayUnary", None, pb.RelayUnaryResponse.FromString)
        )
        self._get_state: grpc.UnaryUnaryMultiCallable[pb.GetStateRequest, pb.GetStateResponse] = (
            channel.unary_unary(
                f"/{SERVICE}/GetState",
                pb.GetStateRequest.SerializeToString,
                pb.GetStateResponse.FromString,
            )
        )
        self._exchange: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(
            f"/{SERVICE}/Exchange", None, None
        )
        self._collect: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(
            f"/{SERVICE}/Collect", None, None
        )
        self._stream: grpc.StreamUnaryMultiCallable[bytes, pb.RelayResponse] = channel.stream_unary(
            f"/{SERVICE}/Relay", None, pb.RelayResponse.FromString
        )

    def send_whole(self, request: bytes, timeout_s: float) -> pb.RelayResponse:
        """A small message in one request."""
        return self._unary(request, timeout=timeout_s).response

    def send(self, parts: Iterator[bytes]) -> Call:
        """A message as a stream."""
        return self._stream.future(parts)

    def exchange(self, parts: Iterator[bytes]) -> Any:  # gRPC's stubs have no type for it
        """A pairwise exchange."""
        return self._exchange(parts)

    def collect(self, parts: Iterator[bytes]) -> Any:
        """A stream for one call of the peer's, by a peer that can only dial out."""
        return self._collect(parts)

    def probe(self, timeout_s: float) -> None:
        """Ask for its state."""
        self._get_state(pb.GetStateRequest(), timeout=timeout_s)

    def close(self) -> None:
        """Cut off what is under way."""
        self._channel.close()


class NoLinkError(Exception):
    """There is no link any more, or it was closed at that moment."""

    code = grpc.StatusCode.CANCELLED


def call_on(link: _WayT | None, invoke: Callable[[_WayT], _T]) -> _T:
    """Begin a call. Raises NoLinkError, also for None."""
    if link is None:
        raise NoLinkError
    try:
        return invoke(link)
    except ValueError as error:  # what grpc raises on a channel that was closed
        raise NoLinkError from error
