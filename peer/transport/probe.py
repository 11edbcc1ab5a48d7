"""What a machine can find out about a swarm before it joins: who answers, how fast, and whether it
can be reached itself. Nothing here changes anything."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median

import grpc

from peer.transport.channel import open_channel
from peer.transport.wire import MESSAGE_LIMIT, SERVICE
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
"""A smaller model is through before its rate can be told."""


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
    """To a neighbour: how long a small call takes, and bytes a second of its model, None where that
    is too small or it had too many readers."""

    round_trip_s: float
    bytes_per_s: float | None


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


def _rate(channel: grpc.Channel, run_id: str) -> float | None:
    """Bytes a second of the model, from the first that came to the last."""
    read: grpc.UnaryStreamMultiCallable[peer_pb2.ReadModelRequest, bytes] = channel.unary_stream(
        f"/{SERVICE}/ReadModel", peer_pb2.ReadModelRequest.SerializeToString, None
    )
    stream = read(peer_pb2.ReadModelRequest(run_id=run_id), timeout=PATIENCE_S)
    total, began, ended = 0, 0.0, 0.0
    try:
        for message in stream:
            ended = time.perf_counter()
            if not began:
                began = ended  # the header; now the bytes begin
                continue
            total += min(len(message), MESSAGE_LIMIT)
            if total >= ENOUGH_BYTES or ended - began >= ENOUGH_S:
                break
    except grpc.RpcError:
        return None  # it has too many readers
    finally:
        stream.cancel()
    return total / (ended - began) if total >= TELLING_BYTES and ended > began else None
