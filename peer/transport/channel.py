"""How peers' connections are kept alive, bounded and mended.

Credentials are the business of `relayswarm.net`.
"""

from __future__ import annotations

import grpc

from peer.algorithms.core import PeerId
from peer.transport.wire import MESSAGE_LIMIT
from relayswarm.net import sockets
from relayswarm.net.security import PLAIN, Security

Options = tuple[tuple[str, int | str], ...]

CHANNEL_OPTIONS: Options = (
    ("grpc.max_receive_message_length", MESSAGE_LIMIT),
    # A peer that hangs or a cable that is cut is noticed within 15 s, whoever waits for whom.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.use_local_subchannel_pool", 1),  # one connection a neighbour and sender, not shared
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 5_000),  # patience with one attempt, not a wait
    ("grpc.max_reconnect_backoff_ms", 1_000),
)


def open_channel(
    address: str, security: Security = PLAIN, peer: PeerId | None = None
) -> grpc.Channel:
    """A channel to HOST:PORT. It connects at the first call and reconnects within a second.

    With TLS it must be `peer` who serves there.
    """
    return sockets.open_channel(address, security, CHANNEL_OPTIONS, peer)
