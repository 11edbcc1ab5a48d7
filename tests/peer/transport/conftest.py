"""A peer's surroundings, recorded: what the transport reports, awaited with a deadline."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
import torch
from torch import Tensor
from xxhash import xxh3_64_intdigest

from peer.algorithms.core import Epoch, Head, Kind, Verdict
from peer.algorithms.metric_relay import SwarmMean
from peer.codec import Format, encode
from peer.hellos import Hello
from peer.transport.channel import open_channel
from peer.transport.client import Outbox
from peer.transport.collecting import Collecting
from peer.transport.collectors import Collectors
from peer.transport.contract import Contract, PeerState, Snapshot, Span
from peer.transport.server import PeerServer
from peer.transport.visits import Visits
from peer.transport.wire import header
from relayswarm.net.gate import Denial
from relayswarm.net.security import PLAIN, Security
from relayswarm.peer.v1 import peer_pb2 as pb
from relayswarm.peer.v1.peer_pb2_grpc import PeerServiceStub

PATIENCE_S = 20.0


class Events:
    """A list that other threads append to."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.events: list[tuple[Any, ...]] = []

    def add(self, *event: Any) -> None:
        with self.changed:
            self.events.append(event)
            self.changed.notify_all()

    def of(self, name: str) -> list[tuple[Any, ...]]:
        """What was reported under a name, in order."""
        with self.changed:
            return [event[1:] for event in self.events if event[0] == name]

    def wait(self, name: str, count: int = 1) -> list[tuple[Any, ...]]:
        """The reports under a name, once there are so many."""
        with self.changed:
            enough = self.changed.wait_for(lambda: len(self.of(name)) >= count, PATIENCE_S)
        assert enough, f"waited for {count} {name}; there were only {self.events}"
        return self.of(name)


@dataclass
class RecordingHandler(Events):
    """A daemon that takes everything, unless told otherwise."""

    judge: Callable[[Head], Verdict] = lambda _: Verdict.ACCEPTED
    judge_content: Callable[[Head], Verdict] = lambda _: Verdict.ACCEPTED
    judge_reader: Callable[[frozenset[str]], str] = lambda _: ""
    model: Tensor = field(default_factory=lambda: torch.zeros(0))
    tensors: tuple[tuple[str, tuple[int, ...]], ...] = ()
    keep: bool = True  # received vectors
    heals: bool = True
    swarm: SwarmMean | None = None

    def __post_init__(self) -> None:
        super().__init__()

    def admit(self, head: Head) -> Verdict:
        self.add("admit", head)
        return self.judge(head)

    def received(self, head: Head, vectors: tuple[Tensor, ...]) -> Verdict:
        self.add("received", head, vectors if self.keep else tuple(v.clone() for v in vectors))
        return self.judge_content(head)

    def lost(self, head: Head) -> Verdict:
        self.add("lost", head)
        return self.judge_content(head)

    def broken(self, head: Head) -> None:
        self.add("broken", head)

    def refused(self, verdict: Verdict, head: Head) -> None:
        self.add("refused", verdict, head)

    def denied(self, denial: Denial, text: str) -> None:
        self.add("denied", denial, text)

    def bytes_in(self, count: int) -> None:
        self.add("bytes_in", count)

    def greeted(self, hello: Hello) -> bool:
        self.add("greeted", hello)
        return self.heals

    def copy(self) -> Tensor:
        return self.model

    def objection(self, names: frozenset[str]) -> str:
        return self.judge_reader(names)

    def snapshot(self) -> Snapshot:
        self.add("snapshot")
        return Snapshot(self.model.clone(), 17, self.tensors)

    def state(self) -> PeerState:
        return PeerState("receiver", 5, Epoch(2, 3, 4), 9, "training", 0.25, 8, 2.5, self.swarm)


class RecordingReports(Events):
    """Who posts messages."""

    def sent(self, to: str, head: Head, verdict: Verdict | None) -> None:
        self.add("sent", to, head, verdict)

    def unreachable(self, peer: str) -> None:
        self.add("unreachable", peer)

    def retried(self, peer: str, reason: str) -> None:
        self.add("retried", peer, reason)

    def bytes_out(self, count: int, wire_format: str) -> None:
        self.add("bytes_out", count, wire_format)


class VectorOutgoing:
    """A payload that is there already; `gate`, if given, holds back reading until it is set."""

    def __init__(self, *vectors: Tensor, gate: threading.Event | None = None) -> None:
        self.vectors = vectors
        self.sections = len(vectors)
        self.lattice: Any = None
        self.value: object | None = None
        self.elements = vectors[0].numel()
        self.closed = 0
        self.read_from: set[str] = set()
        self._gate = gate

    def read(self, section: int, start: int, stop: int, out: Tensor | None = None) -> Tensor:
        assert not self.closed, "read after close"
        self.read_from.add(threading.current_thread().name)
        if self._gate is not None and start > 0:
            assert self._gate.wait(PATIENCE_S)
        part = self.vectors[section][start:stop]
        return part.clone() if out is None else out.copy_(part)

    def close(self) -> None:
        self.closed += 1


class Swarm:
    """One sender, `peer` that receives, and what both report."""

    def __init__(self, tools: Any, elements: int = 1000, plan: Any = None, **changes: Any) -> None:
        self.tools = tools
        self.contract = tools.contract(elements, **changes)
        self.handler = tools.Handler()
        self.reports = tools.Reports()
        self.hub = tools.hub("sender", self.contract)
        self.server = tools.receiver("peer", self.hub, self.handler, self.contract)
        self.outbox = tools.outbox(
            self.reports, self.contract, plan=plan, collectors=self.hub.collectors
        )
        self.outbox.set_addresses({"peer": self.server.address})

    def send(self, step: int = 1, gate: threading.Event | None = None, **head: Any) -> Any:
        """Post random vectors; returns the head and the payload."""
        sections = head.pop("sections", 1)
        posted = self.tools.head(step=step, **head)
        span = self.contract.span(posted.kind, posted.tree)
        vectors = torch.randn(sections, span.elements, dtype=self.contract.dtype)
        outgoing = self.tools.Outgoing(*vectors, gate=gate)
        self.outbox.send("peer", posted, outgoing)
        return posted, outgoing

    def restart(self) -> None:
        """The receiver comes back at the same address."""
        self.server = self.tools.receiver(
            "peer", self.hub, self.handler, self.contract, self.server.address
        )

    def kill(self) -> None:
        self.server.stop(0.0)


LIFE = 5  # of peers that collect


class Hub:
    """What is at a sender for neighbours that can only dial out; `address` is None where all are
    dialled."""

    def __init__(self, name: str, collectors: Collectors, address: str | None) -> None:
        self.name, self.collectors, self.address = name, collectors, address


class DialOnly:
    """A receiver without a port."""

    address = ""

    def __init__(self, collecting: Collecting, hub: Hub, life: int = LIFE) -> None:
        self._collecting = collecting
        collecting.set_neighbours({hub.name: hub.address or ""}, life)

    def stop(self, grace_s: float = 0.0) -> None:
        """Cut off what is under way."""
        del grace_s
        self._collecting.stop()


class Tools:
    """Builds what tests talk about, and takes it down after them. `way`: how receivers are reached,
    `dialled` or `collected`."""

    Handler = RecordingHandler
    Reports = RecordingReports
    Outgoing = VectorOutgoing
    Swarm = Swarm

    def __init__(self, stack: ExitStack, way: str = "dialled") -> None:
        self._stack, self.way = stack, way

    def hub(self, name: str, contract: Contract, *collecting: str) -> Hub:
        """What a sender of that name needs; `collecting` are its neighbours that can only dial out,
        by default `peer`."""
        collectors = Collectors()
        if self.way == "dialled":
            return Hub(name, collectors, None)
        server = self.server(self.Handler(), contract, collectors=collectors)
        collectors.expect(dict.fromkeys(collecting or ("peer",), LIFE))
        return Hub(name, collectors, server.address)

    def receiver(
        self,
        name: str,
        hub: Hub,
        handler: RecordingHandler,
        contract: Contract,
        listen: str = "",
        **kw: Any,
    ) -> Any:
        """Serves at a port, or collects at the hub."""
        if hub.address is None:
            return self.server(handler, contract, listen or "127.0.0.1:0", **kw)
        visits = kw.get("visits") or Visits()
        collecting = Collecting(name, handler, contract, self.Reports(), visits)
        self._stack.callback(collecting.stop)
        return DialOnly(collecting, hub)

    def contract(self, elements: int = 1000, **changes: Any) -> Contract:
        given = {"run_id": "run", "fingerprint": 0xFEED_FACE_CAFE_BEEF, "dtype": torch.float32}
        return Contract(elements=elements, **(given | changes))

    def head(self, step: int = 1, **changes: Any) -> Head:
        given = {
            "sender": "sender",
            "incarnation": 1,
            "epoch": Epoch(1, 2, 3),
            "kind": Kind.RELAY,
            "count": 2,
        }
        return Head(step=step, **(given | changes))

    def server(
        self, handler: RecordingHandler, contract: Contract, listen: str = "127.0.0.1:0", **kw: Any
    ) -> PeerServer:
        server = PeerServer(handler, contract, listen, **kw)
        server.start()
        self._stack.callback(server.stop, 0.0)
        return server

    def stub(self, address: str, *security: Any) -> PeerServiceStub:
        """A foreign peer: plain generated code."""
        return PeerServiceStub(self.channel(address, *security))

    def channel(
        self, address: str, security: Security = PLAIN, peer: str | None = None
    ) -> grpc.Channel:
        channel = open_channel(address, security, peer)
        self._stack.callback(channel.close)
        return channel

    def callback(self, end: Callable[[], object]) -> None:
        """Have this done after the test."""
        self._stack.callback(end)

    def grpc_server(self, service: str, methods: dict[str, Any]) -> str:
        """A foreign server of these methods; returns its address."""
        server = grpc.server(ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, methods),))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        self._stack.callback(lambda: server.stop(0.0).wait())
        return f"127.0.0.1:{port}"

    def outbox(self, reports: RecordingReports, contract: Contract, **kw: Any) -> Outbox:
        outbox = Outbox("sender", contract, kw.pop("plan", None), reports, **kw)
        self._stack.callback(outbox.close, 0.0)
        return outbox

    def header(
        self, head: Head, contract: Contract, sections: int = 1, **changes: Any
    ) -> pb.MessageHeader:
        """A right header, with changes to its fields."""
        span = contract.span(head.kind, head.tree) or Span(0, contract.elements)
        message = header(head, contract, [span] * sections)
        for name, value in changes.items():
            setattr(message, name, value)
        return message

    def unary(
        self, message: pb.MessageHeader, vector: Tensor, fmt: Format = Format.FLOAT32
    ) -> pb.RelayUnaryRequest:
        """A whole message by a foreign encoder."""
        data = bytes(encode(vector, fmt))
        trailer = pb.Trailer(xxh3=xxh3_64_intdigest(data))
        return pb.RelayUnaryRequest(header=message, trailer=trailer, data=data)

    def stream(
        self, message: pb.MessageHeader, payload: bytes, chunk: int = 1 << 20
    ) -> Iterator[pb.RelayRequest]:
        """A streamed message by a foreign encoder, in chunks of so many bytes."""
        yield pb.RelayRequest(header=message)
        for start in range(0, len(payload), chunk):
            yield pb.RelayRequest(offset=start, data=payload[start : start + chunk])
        yield pb.RelayRequest(trailer=pb.Trailer(xxh3=xxh3_64_intdigest(payload)))


@pytest.fixture
def way() -> str:
    """How receivers are reached; modules have it their way."""
    return "dialled"


@pytest.fixture
def tools(way: str) -> Iterator[Tools]:
    with ExitStack() as stack:
        yield Tools(stack, way)
