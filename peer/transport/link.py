"""A connection to a peer's address, with the calls by which messages go out and one to probe it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import grpc

from peer.algorithms.core import PeerId
from peer.transport.channel import open_channel
from peer.transport.wire import SERVICE
from relayswarm.net.security import Security
from relayswarm.peer.v1 import peer_pb2 as pb

_T = TypeVar("_T")


class Link:
    """Requests are serialized already; `close` may come at any time, from any thread."""

    def __init__(self, address: str, security: Security, peer: PeerId) -> None:
        self.address = address
        self._channel = open_channel(address, security, peer)
        channel = self._channel
        self.unary: grpc.UnaryUnaryMultiCallable[bytes, pb.RelayUnaryResponse] = (
            channel.unary_unary(f"/{SERVICE}/RelayUnary", None, pb.RelayUnaryResponse.FromString)
        )
        self.get_state: grpc.UnaryUnaryMultiCallable[pb.GetStateRequest, pb.GetStateResponse] = (
            channel.unary_unary(
                f"/{SERVICE}/GetState",
                pb.GetStateRequest.SerializeToString,
                pb.GetStateResponse.FromString,
            )
        )
        self.exchange: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(
            f"/{SERVICE}/Exchange", None, None
        )
        self.stream: grpc.StreamUnaryMultiCallable[bytes, pb.RelayResponse] = channel.stream_unary(
            f"/{SERVICE}/Relay", None, pb.RelayResponse.FromString
        )

    def close(self) -> None:
        """Cut off what is under way."""
        self._channel.close()


class NoLinkError(Exception):
    """There is no address to send to, or the link was closed at that moment."""


def call_on(link: Link | None, invoke: Callable[[Link], _T]) -> _T:
    """Begin a call. Raises NoLinkError."""
    if link is None:
        raise NoLinkError
    try:
        return invoke(link)
    except ValueError as error:  # what grpc raises on a channel that was closed
        raise NoLinkError from error
