"""Channels and ports, with the credentials that the settings ask for, and in one place."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, TypeAlias

import grpc

from relayswarm.errors import ConfigError
from relayswarm.net.address import is_loopback, split_address
from relayswarm.net.security import Security

log = logging.getLogger("relayswarm.net")

Options: TypeAlias = Sequence[tuple[str, Any]]

DIRECT: Options = (("grpc.enable_http_proxy", 0),)
"""A swarm's processes are reached directly, whatever the environment says, unless a proxy is named
on the command line."""


def open_channel(
    address: str, security: Security, options: Options = (), name: str | None = None
) -> grpc.Channel:
    """A channel to HOST:PORT, by `security.proxy` if there is one; it connects at the first call.

    With TLS the server's certificate must hold `name`, or `security.name`, or else the host.
    """
    credentials = security.channel_credentials()
    way = (("grpc.http_proxy", f"http://{security.proxy}"),) if security.proxy else DIRECT
    if credentials is None:
        return grpc.insecure_channel(address, options=(*way, *options))
    expected = name or security.name
    override = (("grpc.ssl_target_name_override", expected),) if expected else ()
    return grpc.secure_channel(address, credentials, options=(*way, *options, *override))


def open_port(server: grpc.Server, listen: str, security: Security, field: str = "--listen") -> str:
    """Let `server` listen on HOST:PORT, port 0 for any; returns the address with its real port.

    Raises ConfigError if that is no address, the port is taken, or it would be open to others in
    the clear and nobody has said that this is meant.
    """
    host, port = split_address(listen, field)
    credentials = security.server_credentials()
    if credentials is None and not is_loopback(host):
        _in_the_clear(listen, security, field)
    try:
        if credentials is None:
            bound = server.add_insecure_port(f"{host}:{port}")
        else:
            bound = server.add_secure_port(f"{host}:{port}", credentials)
    except RuntimeError as error:
        raise _taken(listen, field) from error
    if bound == 0:
        raise _taken(listen, field)
    return f"{host}:{bound}"


def _in_the_clear(listen: str, security: Security, field: str) -> None:
    if not security.insecure:
        raise ConfigError(
            field,
            listen,
            "other machines could reach it, without TLS",
            "give --tls-ca, --tls-cert and --tls-key (`relayswarm certs` makes some), or say "
            "--insecure in a network that you trust",
        )
    log.warning("%s is open to other machines without TLS: whoever reaches it is believed", listen)


def _taken(listen: str, field: str) -> ConfigError:
    return ConfigError(
        field,
        listen,
        "cannot be listened on: taken by another process, or no address of this machine",
        "choose another port, or port 0 for any that is free",
    )
