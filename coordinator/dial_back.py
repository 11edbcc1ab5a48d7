"""Whether a peer can be reached where it says: the coordinator calls it back.

The address comes from outside, so that little may be done with it: its host must be the one that
the call comes from, the very address that was compared is dialled (a name could mean another one by
then), nothing but gRPC health of a name that the caller made up is asked, answers do not tell what
else may be there, and calls are few: one at a time, a burst of 8, then one in two seconds.
"""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Callable
from ipaddress import IPv6Address, ip_address
from urllib.parse import unquote

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from relayswarm.errors import ConfigError
from relayswarm.net.address import split_address
from relayswarm.net.security import Security
from relayswarm.net.sockets import open_channel

PATIENCE_S = 3.0
BURST, EVERY_S = 8, 2.0
LONGEST = 256  # characters of an address
_NONCE = re.compile(r"[A-Za-z0-9-]{16,64}")
_PEER = re.compile(r"(?P<kind>ipv4|ipv6):\[?(?P<host>[^\]]+)\]?:\d+")


class TooOftenError(Exception):
    """Asked too often."""


class UntriedError(Exception):
    """Nobody is called: the text says why. Whether the caller can be reached is not known."""


class DialBack:
    """Calls back who asks for it. Thread-safe."""

    def __init__(self, security: Security, now: Callable[[], float] = time.monotonic) -> None:
        self._security, self._now = security, now
        self._guard = threading.Lock()
        self._calling = threading.Lock()
        self._allowed, self._since = float(BURST), now()

    def problem(self, caller: str, address: str, peer_id: str, nonce: str) -> str:
        """Why the caller (an IP address) is not reached at HOST:PORT; '' if it is.

        Raises UntriedError if that is not where it calls from, and TooOftenError.
        """
        if not _NONCE.fullmatch(nonce):
            return "nonce: give 16 to 64 letters, digits and -"
        try:
            host, port = split_address(address[:LONGEST], "advertised_address")
        except ConfigError as error:
            return f"{error.problem}; {error.remedy}"
        self._take_turn()
        if not self._calling.acquire(blocking=False):
            raise TooOftenError
        try:
            if caller not in _addresses(host, port):
                raise UntriedError(
                    f"{host} is not where this call comes from, {caller}: it cannot be tried; "
                    f"advertise {caller}, or let another machine try it"
                )
            return self._ask(caller, host, port, peer_id, nonce)
        finally:
            self._calling.release()

    def _take_turn(self) -> None:
        with self._guard:
            now = self._now()
            self._allowed = min(BURST, self._allowed + (now - self._since) / EVERY_S)
            self._since = now
            if self._allowed < 1:
                raise TooOftenError
            self._allowed -= 1

    def _ask(self, ip: str, host: str, port: int, peer_id: str, nonce: str) -> str:
        there = f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"
        name = peer_id or host.strip("[]")
        with open_channel(there, self._security, name=name) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            request = health_pb2.HealthCheckRequest(service=nonce)
            try:
                answer = stub.Check(request, timeout=PATIENCE_S)
            except grpc.RpcError as error:
                if error.code() is grpc.StatusCode.NOT_FOUND:
                    return "somebody else answers there"
                return "nobody answers there"
        serves = answer.status == health_pb2.HealthCheckResponse.SERVING
        return "" if serves else "somebody else answers there"


def host_of(peer: str) -> str:
    """The IP address in what gRPC calls a peer; '' if there is none, as of a Unix socket."""
    match = _PEER.fullmatch(unquote(peer))
    return _plain(match["host"]) if match else ""


def _addresses(host: str, port: int) -> set[str]:
    """All IP addresses of a host."""
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    except OSError:
        return set()
    return {_plain(str(address[4][0])) for address in found}


def _plain(text: str) -> str:
    """An IP address in its usual spelling; IPv4 also where it comes as IPv6."""
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return ""
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return str(mapped or address)
