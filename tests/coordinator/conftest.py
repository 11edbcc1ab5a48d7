"""Coordinators on loopback, and what they say, as something that a test can wait for."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import grpc
import pytest

from coordinator.conductor import Conductor, Notice
from coordinator.service import CoordinatorServer
from coordinator.store import Store
from relayswarm.config import parse
from relayswarm.coordinator.v1 import coordinator_pb2 as pb
from relayswarm.coordinator.v1 import coordinator_pb2_grpc as pb_grpc
from relayswarm.net.security import PLAIN, Security

PATIENCE_S = 20.0
FINGERPRINT = 0xABC
T = TypeVar("T")


@dataclass
class Running:
    """A coordinator that serves, and a line to it."""

    conductor: Conductor
    server: CoordinatorServer
    stub: pb_grpc.CoordinatorServiceStub
    channel: grpc.Channel
    notices: queue.SimpleQueue[Notice] = field(default_factory=queue.SimpleQueue)

    def await_notice(self, kind: type[T]) -> T:
        """The next notice of this kind."""
        while True:
            notice = self.notices.get(timeout=PATIENCE_S)
            if isinstance(notice, kind):
                return notice

    def join(self, peer: str = "", **fields: object) -> pb.JoinResponse:
        number = len(self.conductor.membership.members)
        known = {
            "min_protocol_version": 1,
            "max_protocol_version": 1,
            "peer_id": peer,
            "advertised_address": f"127.0.0.1:{10_000 + number}",
            "model_fingerprint": FINGERPRINT,
            "incarnation": 1,
        }
        return self.stub.Join(pb.JoinRequest(**(known | fields)), timeout=PATIENCE_S)

    def renew(self, peer: str, **fields: object) -> pb.RenewLeaseResponse:
        known = {"run_id": "run", "peer_id": peer, "incarnation": 1}
        return self.stub.RenewLease(pb.RenewLeaseRequest(**(known | fields)), timeout=PATIENCE_S)

    def leave(self, peer: str, *, finished: bool = False) -> pb.LeaveResponse:
        request = pb.LeaveRequest(run_id="run", peer_id=peer, incarnation=1, finished=finished)
        return self.stub.Leave(request, timeout=PATIENCE_S)

    def watch(self, peer: str, **fields: object) -> Iterator[pb.WatchTopologyResponse]:
        known = {"run_id": "run", "peer_id": peer, "incarnation": 1}
        request = pb.WatchTopologyRequest(**(known | fields))
        return self.stub.WatchTopology(request, timeout=PATIENCE_S)

    def view(self, stream: Iterator[pb.WatchTopologyResponse]) -> pb.View:
        """The next view of a watch."""
        return next(response.view for response in stream if response.HasField("view"))


@pytest.fixture
def serve() -> Iterator[Callable[..., Running]]:
    """Starts coordinators of a config's TOML text; stops them when the test is over."""
    with ExitStack() as stack:

        def start(
            text: str = "",
            *,
            store: Path | None = None,
            reflection: bool = False,
            security: Security = PLAIN,
        ) -> Running:
            memory = stack.enter_context(closing(Store(store)))
            conductor = Conductor(parse(text), memory)
            server = CoordinatorServer(conductor, "127.0.0.1:0", security, reflection=reflection)
            channel = stack.enter_context(grpc.insecure_channel(server.address))
            running = Running(conductor, server, pb_grpc.CoordinatorServiceStub(channel), channel)
            conductor.listeners.append(running.notices.put)
            server.start()
            conductor.start()
            stack.callback(server.stop)
            return running

        yield start
