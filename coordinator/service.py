"""The coordinator's gRPC service.

What belongs here: requests in, answers and status codes out. Each watching peer holds a thread of
the pool while it watches. The pool therefore has a thread for each member that membership may admit
(`max_members`), and `SPARE_THREADS` for short calls; as a member has one watch at most, watches
never use the pool up. Threads are made on demand: the size costs nothing until it is needed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import NoReturn, TypeAlias

import grpc

from coordinator import messages
from coordinator.conductor import Conductor, Denied, SamplesRefused, WatchEnd
from coordinator.dial_back import DialBack, TooOftenError, UntriedError, host_of
from coordinator.member_metrics import Sample, checked
from coordinator.members import (
    REFUSAL_KEY,
    Admitted,
    NoTree,
    Refusal,
    Refused,
    Unknown,
    Waiting,
)
from coordinator.reach import no_tree_text
from relayswarm.coordinator.v1 import coordinator_pb2 as pb
from relayswarm.coordinator.v1 import coordinator_pb2_grpc as pb_grpc
from relayswarm.net.gate import Denial, Gate
from relayswarm.net.security import PLAIN, Security
from relayswarm.net.server import Server
from relayswarm.version import __version__

SPARE_THREADS = 32
SERVICE = pb.DESCRIPTOR.services_by_name["CoordinatorService"].full_name

LARGEST_REQUEST = 1 << 16  # bytes

_CODES = {
    Refusal.BAD_ID: grpc.StatusCode.INVALID_ARGUMENT,
    Refusal.BAD_ADDRESS: grpc.StatusCode.INVALID_ARGUMENT,
    Refusal.WEIGHT: grpc.StatusCode.INVALID_ARGUMENT,
    Refusal.ID_TAKEN: grpc.StatusCode.ALREADY_EXISTS,
    Refusal.ADDRESS_TAKEN: grpc.StatusCode.ALREADY_EXISTS,
    Refusal.FULL: grpc.StatusCode.RESOURCE_EXHAUSTED,
}  # all others: FAILED_PRECONDITION


_OfMember: TypeAlias = pb.RenewLeaseRequest | pb.LeaveRequest | pb.WatchTopologyRequest


class CoordinatorService(pb_grpc.CoordinatorServiceServicer):
    """Answers peers, by what the conductor decides, once the gate has let them in."""

    def __init__(self, conductor: Conductor, gate: Gate, dial_back: DialBack) -> None:
        self._conductor = conductor
        self._gate = gate
        self._dial_back = dial_back
        self._run_config = conductor.config.to_toml()
        self._lease_ms = round(conductor.rules.lease_s * 1000)

    def Join(self, request: pb.JoinRequest, context: grpc.ServicerContext) -> pb.JoinResponse:
        """Introduce a peer. One that wants no id in particular is called as its certificate is."""
        self._gate.check(context)
        join = messages.join_event(request)
        if not join.peer_id:
            join = replace(join, peer_id=self._gate.name_of(context))
        self._gate.speaks_for(context, join.peer_id)
        answer = self._conductor.handle(join)[0]
        if isinstance(answer, Refused):
            code = _CODES.get(answer.refusal, grpc.StatusCode.FAILED_PRECONDITION)
            context.set_trailing_metadata(((REFUSAL_KEY, answer.refusal.value),))
            _abort(context, code, answer.text)
        assert isinstance(answer, Admitted)
        return pb.JoinResponse(
            protocol_version=answer.version,
            run_id=self._conductor.config.run_id,
            peer_id=answer.member.peer_id,
            run_config=self._run_config,
            shard=answer.member.shard,
            lease_ms=self._lease_ms,
            donors=[messages.member_message(donor) for donor in answer.donors],
        )

    def RenewLease(
        self, request: pb.RenewLeaseRequest, context: grpc.ServicerContext
    ) -> pb.RenewLeaseResponse:
        """Keep a member."""
        self._check(request, context)
        metrics = self._metrics(request) if request.HasField("metrics") else None
        answer = self._conductor.handle(messages.renew_event(request, metrics))[0]
        if isinstance(answer, Unknown):
            _abort(context, grpc.StatusCode.NOT_FOUND, answer.text)
        return pb.RenewLeaseResponse(lease_ms=self._lease_ms, progress=self._conductor.progress)

    def _metrics(self, request: pb.RenewLeaseRequest) -> tuple[Sample, ...]:
        """What is taken of the metrics that a member tells."""
        taken, faults = checked(messages.samples(request.metrics))
        if faults:
            peer = request.peer_id[: messages.MAX_TEXT]
            self._conductor.tell(SamplesRefused(peer, faults))
        return taken

    def Leave(self, request: pb.LeaveRequest, context: grpc.ServicerContext) -> pb.LeaveResponse:
        """Let a member go. Leaving twice is no error: the first answer may have been lost."""
        self._check(request, context)
        self._conductor.handle(messages.leave_event(request))
        return pb.LeaveResponse()

    def WatchTopology(
        self, request: pb.WatchTopologyRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.WatchTopologyResponse]:
        """Tell a member about each epoch that it is in."""
        self._check(request, context)
        conductor, me = self._conductor, request.peer_id[: messages.MAX_TEXT]
        context.add_callback(conductor.nudge)
        for news in conductor.watch(me, request.incarnation, context.is_active):
            if isinstance(news, WatchEnd):
                _end_watch(news, me, context)
            elif isinstance(news, NoTree):
                yield pb.WatchTopologyResponse(no_tree=no_tree_text(news.present))
            elif isinstance(news, Waiting):
                waiting = pb.Waiting(present=len(news.present), needed=news.needed)
                yield pb.WatchTopologyResponse(waiting=waiting)
            else:
                view = messages.view_message(
                    news.elected, news.layout, news.digest, me, news.stop_step
                )
                view.progress = conductor.progress
                yield pb.WatchTopologyResponse(view=view)

    def GetStatus(
        self, request: pb.GetStatusRequest, context: grpc.ServicerContext
    ) -> pb.GetStatusResponse:
        """Say how the run is doing."""
        del request
        self._gate.check(context)
        return status_of(self._conductor)

    def CheckReachability(
        self, request: pb.CheckReachabilityRequest, context: grpc.ServicerContext
    ) -> pb.CheckReachabilityResponse:
        """Call the caller back."""
        self._gate.check(context)
        if request.peer_id:
            self._gate.speaks_for(context, request.peer_id)
        name = request.peer_id or self._gate.name_of(context)
        host, untried = host_of(context.peer()), False
        try:
            problem = self._dial_back.problem(host, request.advertised_address, name, request.nonce)
        except UntriedError as error:
            problem, untried = str(error), True
        except TooOftenError:
            _abort(context, grpc.StatusCode.RESOURCE_EXHAUSTED, "asked too often; wait 2 s")
        return pb.CheckReachabilityResponse(
            reached=not problem,
            problem=problem,
            untried=untried,
            seen_host=host,
            time_s=time.time(),
            release=__version__,
        )

    def _check(self, request: _OfMember, context: grpc.ServicerContext) -> None:
        """What a member asks must be in its own name, and about this run."""
        self._gate.check(context)
        self._gate.speaks_for(context, request.peer_id)
        ours, theirs = self._conductor.config.run_id, request.run_id[: messages.MAX_TEXT]
        if request.run_id != ours:
            text = f"run_id = {theirs!r}: this coordinator serves the run {ours!r}; join that"
            self._conductor.tell(Denied(Denial.RUN, text))
            _abort(context, grpc.StatusCode.FAILED_PRECONDITION, text)


def status_of(conductor: Conductor) -> pb.GetStatusResponse:
    """How the run is doing."""
    with conductor.lock:
        membership, publication = conductor.membership, conductor.publication
        status = pb.GetStatusResponse(
            run_id=conductor.config.run_id,
            state=membership.state.value,
            needed=conductor.rules.needed,
            members=messages.all_statuses(membership, conductor.now()),
            run_config=conductor.config.to_toml(),
            stop_step=conductor.stop_step,
        )
    if publication:
        status.epoch.CopyFrom(messages.epoch_message(publication.elected, publication.digest))
        status.reason = messages.reason_text(publication.elected, publication.layout)
        status.trees.extend(messages.tree_messages(publication.layout))
    return status


def _end_watch(end: WatchEnd, me: str, context: grpc.ServicerContext) -> None:
    if end is WatchEnd.NOT_A_MEMBER:
        text = f"{me!r} with this incarnation is no member (any more); join again"
        _abort(context, grpc.StatusCode.NOT_FOUND, text)
    elif end is WatchEnd.SUPERSEDED:
        _abort(context, grpc.StatusCode.ABORTED, f"{me!r} watches through another stream by now")
    elif end is WatchEnd.STOPPING:
        _abort(context, grpc.StatusCode.UNAVAILABLE, "the coordinator is stopping")


def _abort(context: grpc.ServicerContext, code: grpc.StatusCode, text: str) -> NoReturn:
    context.abort(code, text)
    raise AssertionError("abort raises")


class CoordinatorServer:
    """The service on a socket, with gRPC health checks and, if wanted, reflection."""

    def __init__(
        self,
        conductor: Conductor,
        listen: str,
        security: Security = PLAIN,
        *,
        reflection: bool = False,
    ) -> None:
        """Bind `listen` (HOST:PORT, port 0: any free one). Raises ConfigError if it is taken, or
        `security` does not do for it."""
        self._conductor = conductor
        gate = Gate(security.tokens(), self._denied)
        service = CoordinatorService(conductor, gate, DialBack(security))
        self._server = Server(
            SERVICE,
            partial(pb_grpc.add_CoordinatorServiceServicer_to_server, service),
            listen,
            security,
            self._denied,
            threads=conductor.rules.max_members + SPARE_THREADS,
            largest_message=LARGEST_REQUEST,
            reflection=reflection,
        )
        self.address = self._server.address

    def _denied(self, denial: Denial, text: str) -> None:
        self._conductor.tell(Denied(denial, text))

    def start(self) -> None:
        """Serve. The conductor is started on its own."""
        self._server.start()

    def stop(self, grace_s: float = 1.0) -> None:
        """Say so to whoever asks for health, stop the conductor, which ends the watches, and let
        short calls finish."""
        self._server.stop(grace_s, self._conductor.stop)
