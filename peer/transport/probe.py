"""What a machine can find out about a swarm before it joins: who answers, how fast, and whether it
can be reached itself. Nothing here changes anything."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import TypeAlias

import grpc

from peer.transport.channel import open_channel
from peer.transport.wire import MESSAGE_LIMIT, SERVICE, Chunk, MalformedError, parse_response
from relayswarm.coordinator.v1 import coordinator_pb2 as pb
from relayswarm.coordinator.v1 import coordinator_pb2_grpc as pb_grpc
from relayswarm.errors import JoinError
from relayswarm.net import sockets
from relayswarm.net.address import split_address
from relayswarm.net.security import Security
from relayswarm.net.server import Server
from relayswarm.net.sparing import shortened
from relayswarm.net.tokens import Metadata
from relayswarm.peer.v1 import peer_pb2

PATIENCE_S = 5.0
TURNS = 5
ENOUGH_BYTES, ENOUGH_S = 8 << 20, 1.0
"""Of a neighbour's model so many bytes are read, or as many as come in so many seconds."""

TELLING_BYTES = 1 << 20
"""A smaller model is through before its rate can be told from one reading."""

FEWEST_BYTES = 1 << 14
"""TCP sends a still smaller model at once (RFC 6928), and what holds a line to a rate often lets so
much pass: it says nothing about the line."""

PAIRS, FEWEST_PAIRS = 10, 3
"""So often a model between these two is read beside its last byte alone. What the one takes longer
than the other is the way of the bytes: calls, messages and the way there and back are the same.
The fewest are enough once the bytes have taken `ENOUGH_S` together."""

OUTLIERS = 1
"""If more pairs than these are off by a factor of two, they tell only how slow the line can be."""

_Read: TypeAlias = "grpc.UnaryStreamMultiCallable[peer_pb2.ReadModelRequest, bytes]"


@dataclass(frozen=True, slots=True)
class Swarm:
    """A coordinator's answer: its run, who is in it (id, address), and how long the answer took."""

    run_id: str
    state: str
    members: tuple[tuple[str, str], ...]
    round_trip_s: float


@dataclass(frozen=True, slots=True)
class CalledBack:
    """What the coordinator found when it called back, if it did not leave it `untried`. `ahead_s`:
    its clock less ours, seconds, give or take half of `round_trip_s`."""

    reached: bool
    untried: bool
    problem: str
    seen_host: str
    ahead_s: float
    round_trip_s: float
    release: str


@dataclass(frozen=True, slots=True)
class Line:
    """To a neighbour: how long a small call takes, and bytes a second of its model."""

    round_trip_s: float
    rate: Rate


@dataclass(frozen=True, slots=True)
class Rate:
    """Bytes a second, or the fewest that they can be (`at_least`). None if the model is too small
    or could not be read, and 0 if nothing of it came in time: `why`."""

    bytes_per_s: float | None
    at_least: bool = False
    why: str = ""


@dataclass(frozen=True, slots=True)
class Reading:
    """Of a model or the end of it, as far as it was read: bytes, and seconds from the header and
    from the call on. `model_bytes` are those of the whole model."""

    snapshot_id: int
    model_bytes: int
    received: int
    arriving_s: float
    taken_s: float


class CoordinatorProbe:
    """Asks a coordinator. Leave it as a context."""

    def __init__(self, address: str, security: Security) -> None:
        split_address(address, "--coordinator")
        self._address, self._encrypts = address, security.encrypts
        self._tokens = security.tokens()
        self._channel = sockets.open_channel(address, security)
        self._stub = pb_grpc.CoordinatorServiceStub(self._channel)

    def __enter__(self) -> CoordinatorProbe:
        return self

    def __exit__(self, *error: object) -> None:
        self._channel.close()

    def swarm(self) -> Swarm:
        """Who is there. Raises JoinError if nobody answers."""
        with self._answering():
            taken = []
            for _ in range(TURNS + 1):  # the first one connects
                began = time.perf_counter()
                status = self._stub.GetStatus(
                    pb.GetStatusRequest(), timeout=PATIENCE_S, metadata=self._metadata()
                )
                taken.append(time.perf_counter() - began)
        members = tuple(
            (one.member.peer_id, one.member.address)
            for one in status.members
            if one.state != "finished" and one.member.address
        )
        return Swarm(status.run_id, status.state, members, median(taken[1:]))

    def call_back(self, peer_id: str, advertised: str, nonce: str) -> CalledBack | None:
        """Be called back; None if this coordinator cannot. Raises JoinError if it does not."""
        request = pb.CheckReachabilityRequest(
            peer_id=peer_id, advertised_address=advertised, nonce=nonce
        )
        with self._answering():
            began, clock = time.perf_counter(), time.time()
            try:
                answer = self._stub.CheckReachability(
                    request, timeout=2 * PATIENCE_S, metadata=self._metadata()
                )
            except grpc.RpcError as error:
                if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                    return None
                raise
            taken = time.perf_counter() - began
        return CalledBack(
            answer.reached,
            answer.untried,
            shortened(answer.problem),
            shortened(answer.seen_host),
            answer.time_s - (clock + taken),  # it looks at its clock when all else is done
            taken,
            shortened(answer.release),
        )

    def _metadata(self) -> Metadata | None:
        return self._tokens.metadata() if self._tokens else None

    @contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            yield
        except grpc.RpcError as error:
            details = shortened(error.details() or "")
            text = f"the coordinator at {self._address}: {error.code().name.lower()} ({details})"
            raise JoinError(text) from error


@contextmanager
def answering(listen: str, security: Security) -> Iterator[tuple[str, str]]:
    """Serve gRPC health under a name that nobody else knows; yields the address and that name.

    Raises ConfigError if `listen` is unusable, or taken.
    """
    nonce = f"doctor-{secrets.token_hex(16)}"
    server = Server(
        nonce,
        lambda _: None,
        listen,
        security,
        lambda *_: None,
        threads=8,
        largest_message=1 << 16,
    )
    server.start()
    try:
        yield server.address, nonce
    finally:
        server.stop(0.0)


def line_to(peer_id: str, address: str, run_id: str, security: Security) -> Line:
    """Measure the line to a member. Raises JoinError if it does not answer."""
    channel = open_channel(address, security, peer_id)
    get_state: grpc.UnaryUnaryMultiCallable[peer_pb2.GetStateRequest, peer_pb2.GetStateResponse] = (
        channel.unary_unary(
            f"/{SERVICE}/GetState",
            peer_pb2.GetStateRequest.SerializeToString,
            peer_pb2.GetStateResponse.FromString,
        )
    )
    try:
        taken = []
        for _ in range(TURNS + 1):
            began = time.perf_counter()
            get_state(peer_pb2.GetStateRequest(), timeout=PATIENCE_S)
            taken.append(time.perf_counter() - began)
        return Line(median(taken[1:]), _rate(channel, run_id))
    except grpc.RpcError as error:
        details = shortened(error.details() or "")
        raise JoinError(
            f"{peer_id} at {address}: {error.code().name.lower()} ({details})"
        ) from error
    finally:
        channel.close()


def _rate(channel: grpc.Channel, run_id: str) -> Rate:
    """Of the model, from one reading if it is large, else from pairs of them."""
    read: _Read = channel.unary_stream(
        f"/{SERVICE}/ReadModel", peer_pb2.ReadModelRequest.SerializeToString, None
    )
    try:
        first = _read(read, peer_pb2.ReadModelRequest(run_id=run_id))
        if first.received >= TELLING_BYTES or first.arriving_s >= ENOUGH_S:
            late = f"nothing of its model came in {PATIENCE_S:g} s" if not first.received else ""
            return Rate(first.received / first.arriving_s, why=late)
        if first.model_bytes < FEWEST_BYTES:
            return Rate(None, why="its model is too small to tell a rate")
        return rate_of(_pairs(read, run_id, first), first.model_bytes - 1)
    except grpc.RpcError as error:  # it has too many readers, or its site's law lets nobody read
        return Rate(None, why=f"its model cannot be read: {shortened(error.details() or '')}")
    except MalformedError as error:
        return Rate(None, why=f"its model cannot be read: {shortened(str(error))}")


def _pairs(read: _Read, run_id: str, first: Reading) -> list[tuple[float, float]]:
    """Seconds for the model that was read first, and for its last byte."""
    whole = peer_pb2.ReadModelRequest(run_id=run_id, snapshot_id=first.snapshot_id)
    byte = peer_pb2.ReadModelRequest(
        run_id=run_id, snapshot_id=first.snapshot_id, offset=first.model_bytes - 1
    )
    pairs: list[tuple[float, float]] = []
    longer_s = 0.0
    while len(pairs) < FEWEST_PAIRS or (len(pairs) < PAIRS and longer_s < ENOUGH_S):
        pairs.append((_read(read, whole).taken_s, _read(read, byte).taken_s))
        longer_s += pairs[-1][0] - pairs[-1][1]
    return pairs


def rate_of(pairs: Sequence[tuple[float, float]], count: int) -> Rate:
    """Each first of a pair is the seconds of a call with `count` bytes more than the second."""
    more = sorted(longer - shorter for longer, shorter in pairs)
    middle = median(more)
    agreeing = sum(middle / 2 <= one <= 2 * middle for one in more)
    if middle > 0 and agreeing >= len(more) - OUTLIERS:
        return Rate(count / middle)
    return Rate(count / sorted(map(abs, more))[-1 - OUTLIERS], at_least=True)


def _read(read: _Read, request: peer_pb2.ReadModelRequest) -> Reading:
    """Read until it is enough, or time is over once it began. Raises grpc.RpcError, and
    MalformedError for what does not begin with a header."""
    called = time.perf_counter()
    stream = read(request, timeout=PATIENCE_S)
    header, received, began, ended = None, 0, called, called
    try:
        for message in stream:
            ended = time.perf_counter()
            if header is None:
                header, began = _header(message), ended
                continue
            received += min(len(message), MESSAGE_LIMIT)
            if received >= ENOUGH_BYTES or ended - began >= ENOUGH_S:
                break
    except grpc.RpcError as error:
        if header is None or error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED:
            raise
        ended = time.perf_counter()
    finally:
        stream.cancel()
    if header is None:
        raise MalformedError("it ended without a header")
    taken_s = time.perf_counter() - called
    return Reading(header.snapshot_id, header.payload_bytes, received, ended - began, taken_s)


def _header(message: bytes) -> peer_pb2.ModelHeader:
    part = parse_response(message)
    if isinstance(part, Chunk) or not part.HasField("header"):
        raise MalformedError("it began without a header")
    return part.header
