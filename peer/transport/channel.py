"""Channels and ports: the one place that says how peers connect.

Connections are insecure for now; credentials come in here and nowhere else.
"""

from __future__ import annotations

import re

import grpc

from peer.transport.wire import MESSAGE_LIMIT
from relayswarm.errors import ConfigError

Options = tuple[tuple[str, int | str], ...]

_KEEPALIVE_MS = 10_000
_KEEPALIVE_TIMEOUT_MS = 5_000

_COMMON: Options = (
    ("grpc.max_receive_message_length", MESSAGE_LIMIT),
    ("grpc.max_send_message_length", MESSAGE_LIMIT),
    # A peer that hangs or a cable that is cut is noticed within 15 s, whoever waits for whom.
    ("grpc.keepalive_time_ms", _KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", _KEEPALIVE_TIMEOUT_MS),
    ("grpc.http2.max_pings_without_data", 0),
)

CHANNEL_OPTIONS: Options = (
    *_COMMON,
    ("grpc.enable_http_proxy", 0),  # neighbours are reached directly, whatever the environment says
    ("grpc.use_local_subchannel_pool", 1),  # one connection a neighbour and sender, not shared
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 5_000),  # patience with one attempt, not a wait
    ("grpc.max_reconnect_backoff_ms", 1_000),
)

SERVER_OPTIONS: Options = (
    *_COMMON,
    ("grpc.so_reuseport", 0),  # a port that is taken must be an error, not shared with a stranger
    ("grpc.http2.min_ping_interval_without_data_ms", _KEEPALIVE_MS // 2),
    ("grpc.http2.max_ping_strikes", 0),
)

_HOST_PORT = re.compile(r"(?P<host>\[[0-9A-Fa-f:.%\w]+\]|[^\[\]:/\s]+):(?P<port>[0-9]{1,5})")


def open_channel(address: str) -> grpc.Channel:
    """A channel to HOST:PORT. It connects at the first call and reconnects within a second."""
    return grpc.insecure_channel(address, options=CHANNEL_OPTIONS)


def open_port(server: grpc.Server, listen: str, field: str = "--listen") -> str:
    """Let `server` listen on HOST:PORT, port 0 for any; returns the address with its real port.

    Raises ConfigError if that is no address, or the port is taken.
    """
    host, port = split_address(listen, field)
    try:
        bound = server.add_insecure_port(f"{host}:{port}")
    except RuntimeError as error:
        raise _taken(listen, field) from error
    if bound == 0:
        raise _taken(listen, field)
    return f"{host}:{bound}"


def split_address(address: str, field: str) -> tuple[str, int]:
    """Host and port of HOST:PORT. Raises ConfigError naming `field` if it is not of that form."""
    match = _HOST_PORT.fullmatch(address)
    if match is None or int(match["port"]) > 65535:
        raise ConfigError(field, address, "not of the form HOST:PORT", "write e.g. 127.0.0.1:50051")
    return match["host"], int(match["port"])


def _taken(listen: str, field: str) -> ConfigError:
    return ConfigError(
        field,
        listen,
        "cannot be listened on: taken by another process, or no address of this machine",
        "choose another port, or port 0 for any that is free",
    )
