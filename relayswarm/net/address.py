"""Addresses as users write them: HOST:PORT."""

from __future__ import annotations

import re
from ipaddress import ip_address

from relayswarm.errors import ConfigError

_HOST_PORT = re.compile(r"(?P<host>\[[0-9A-Fa-f:.%\w]+\]|[^\[\]:/\s]+):(?P<port>[0-9]{1,5})")


def split_address(address: str, field: str) -> tuple[str, int]:
    """Host and port of HOST:PORT. Raises ConfigError naming `field` if it is not of that form."""
    match = _HOST_PORT.fullmatch(address)
    if match is None or int(match["port"]) > 65535:
        raise ConfigError(field, address, "not of the form HOST:PORT", "write e.g. 127.0.0.1:50051")
    return match["host"], int(match["port"])


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches it. A name other than localhost may be anything."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
