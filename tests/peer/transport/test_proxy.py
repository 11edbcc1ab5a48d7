"""Connections by way of an HTTP proxy: with and without TLS, sending and collecting."""

from __future__ import annotations

import socket
import socketserver
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
import torch

from peer.algorithms.core import Verdict
from peer.transport.collecting import Collecting
from peer.transport.collectors import Collectors
from peer.transport.visits import Visits
from relayswarm.net.security import PLAIN, Security
from tests.peer.transport.conftest import LIFE


class Connect(socketserver.StreamRequestHandler):
    """One connection of a proxy that knows CONNECT."""

    def handle(self) -> None:
        method, target, _ = self.rfile.readline().decode().split()
        while self.rfile.readline().strip():
            pass
        self.server.asked.append((method, target))  # type: ignore[attr-defined]
        host, _, port = target.rpartition(":")
        with socket.create_connection((host, int(port))) as other:
            self.wfile.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
            back = threading.Thread(target=pump, args=(other, self.connection), daemon=True)
            back.start()
            pump(self.connection, other)
            back.join()


def pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    for end in (source, target):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


class Proxy(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Connect)
        self.asked: list[tuple[str, str]] = []
        self.address = f"127.0.0.1:{self.server_address[1]}"


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    with Proxy() as proxy:
        thread = threading.Thread(target=proxy.serve_forever, args=(0.05,))
        thread.start()
        yield proxy
        proxy.shutdown()
        thread.join()


@pytest.mark.parametrize("encrypted", [False, True], ids=["in the clear", "TLS"])
def test_a_peer_behind_a_proxy_sends_and_collects(
    tools: Any, proxy: Proxy, certificates: Callable[..., Security], encrypted: bool
) -> None:
    hub_keys, peer_keys = (
        (certificates("peer-0"), certificates("peer-1")) if encrypted else (PLAIN, PLAIN)
    )
    behind = replace(peer_keys, proxy=proxy.address)
    contract, collectors = tools.contract(), Collectors()
    at_hub, at_peer, reports = tools.Handler(), tools.Handler(), tools.Reports()
    server = tools.server(at_hub, contract, collectors=collectors, security=hub_keys)
    collectors.expect({"peer-1": LIFE})
    sending = tools.outbox(tools.Reports(), contract, security=behind)
    sending.set_addresses({"peer-0": server.address})
    head = tools.head(sender="peer-1")
    sending.send("peer-0", head, tools.Outgoing(torch.ones(1000)))
    assert at_hub.wait("received")[0][0] == head

    collecting = Collecting("peer-1", at_peer, contract, tools.Reports(), Visits(), behind)
    tools.callback(collecting.stop)
    collecting.set_neighbours({"peer-0": server.address}, LIFE)
    hub = tools.outbox(reports, contract, collectors=collectors)
    hub.set_addresses({"peer-1": ""})
    back = tools.head(sender="peer-0")
    hub.send("peer-1", back, tools.Outgoing(torch.ones(1000)))
    assert at_peer.wait("received")[0][0] == back
    assert reports.wait("sent") == [("peer-1", back, Verdict.ACCEPTED)]
    assert proxy.asked == [("CONNECT", server.address)] * 2


def test_without_being_told_no_proxy_of_the_environment_is_used(
    tools: Any, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", f"http://{proxy.address}")
    monkeypatch.setenv("no_proxy", "")
    swarm = tools.Swarm(tools)
    swarm.send()
    swarm.reports.wait("sent")
    assert not proxy.asked
