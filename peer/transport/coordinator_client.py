"""A peer's line to its coordinator: join, keep the lease, hear of new topologies, leave.

What belongs here: what a peer does when the coordinator is slow, away, or has forgotten it. Once a
peer is a member, a coordinator that goes away is no trouble: the peer trains on in the view that it
has, and this line mends itself.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import grpc

from coordinator.evaluations import evaluation_in, evaluation_message
from coordinator.member_metrics import Evaluation, Sample
from coordinator.members import REFUSAL_KEY, Refusal
from peer.algorithms.core import Epoch, PeerId
from peer.hellos import Commit
from peer.transport.bpdus import tree_message
from peer.transport.channel import open_channel
from peer.transport.contract import PeerState
from peer.transport.topology_watch import (
    FIRST_RETRY_S,
    ID,
    LAST_RETRY_S,
    OnFailed,
    OnNoTree,
    OnProgress,
    OnStop,
    OnView,
    OnWaiting,
    TopologyWatch,
    words,
)
from peer.transport.wire import KNOWN_FORMATS, epoch_message, swarm_message
from relayswarm import config as run_config
from relayswarm.config import RunConfig
from relayswarm.coordinator.v1 import coordinator_pb2 as pb
from relayswarm.coordinator.v1 import coordinator_pb2_grpc as pb_grpc
from relayswarm.errors import ConfigError, JoinError
from relayswarm.net.address import split_address
from relayswarm.net.security import PLAIN, Security
from relayswarm.net.sparing import shortened
from relayswarm.net.tokens import Metadata

log = logging.getLogger("relayswarm.peer")

MIN_VERSION, MAX_VERSION = 1, 1
"""Range of protocol versions that this peer speaks."""

CALL_TIMEOUT_S, TURN_TIMEOUT_S = 5.0, 2.0
"""How long one is waited for who is the only one, or one of several coordinators."""
GOODBYE_TIMEOUT_S = 2.5
PROGRESS_EVERY_S = 5.0  # between log lines while the coordinator is away

SHORTEST_LEASE_S = 0.1
"""What a lease is taken to be at least: no coordinator has a peer renew without a pause."""


class NoAnswerError(JoinError):
    """No coordinator answered in time; it may be back later."""


class RunOverError(JoinError):
    """The coordinator refuses this peer because there is nothing left for it to do."""


T = TypeVar("T")
_AWAY = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}


@dataclass(frozen=True, slots=True)
class JoinInfo:
    """What a peer says of itself. Without a fingerprint it asks for the run config only: its id
    and shard are kept for it until it joins with one."""

    incarnation: int
    peer_id: PeerId = ""  # empty: the coordinator chooses
    address: str = ""  # HOST:PORT at which others reach it
    dial_only: bool = False  # nobody can; there is no address
    metrics_address: str = ""
    fingerprint: int = 0
    step: int = 0  # steps that its model has done
    run_id: str = ""  # empty: whatever run the coordinator has
    known_epoch: Epoch | None = None  # it trains in, if it joins again
    resume_points: frozenset[tuple[int, int]] = frozenset()  # (step, layout) of checkpoints
    tree: Commit | None = None  # of that epoch, if no coordinator made it
    weight: float = 1.0  # of its model in averages; 0: it has no data


@dataclass(frozen=True, slots=True)
class Donor:
    """A member that has a model to give."""

    peer_id: PeerId
    address: str


@dataclass(frozen=True, slots=True)
class Joined:
    """What the coordinator answers. Of the `donors` the one to ask first is in front; there are
    none at the start of a run."""

    protocol_version: int
    run_id: str
    peer_id: PeerId
    run_config: str  # TOML
    shard: int
    lease_s: float
    donors: tuple[Donor, ...]


@dataclass(frozen=True, slots=True)
class Renewal:
    """That a member is still there in this life, whatever epoch it is in, and how it is doing."""

    incarnation: int
    state: PeerState
    unreachable: frozenset[PeerId] = frozenset()
    tree: Commit | None = None  # of the epoch, if no coordinator made it
    metrics: tuple[Sample, ...] | None = None  # of now; None: as told before
    evaluation: Evaluation | None = None  # its last, of what may leave


class CoordinatorClient:
    """The line to a run's coordinator. Thread-safe; `close` ends whatever waits in here."""

    def __init__(self, address: str, security: Security = PLAIN) -> None:
        """Prepare to talk to HOST:PORT, or to whichever leads of HOST:PORT,HOST:PORT and so on;
        nothing is connected yet. Raises ConfigError if one is no such address, or `security` names
        files that do not do."""
        addresses = address.split(",")
        for one in addresses:
            split_address(one, "--coordinator")
        self.address = address
        self._tokens = security.tokens()
        self._channels = [open_channel(one, security) for one in addresses]
        self._stubs = [pb_grpc.CoordinatorServiceStub(channel) for channel in self._channels]
        self._leading = 0  # which of them answered last
        self._timeout_s = CALL_TIMEOUT_S if len(addresses) == 1 else TURN_TIMEOUT_S
        self._closed = threading.Event()
        self._guard = threading.Lock()
        self._watch: TopologyWatch | None = None
        self._run_id = ""
        self._lease_s = 0.0
        self._correct_lr = False
        self._away = False

    @property
    def is_away(self) -> bool:
        """Whether the last renewal was not answered."""
        return self._away

    def join(self, info: JoinInfo, patience_s: float = 60.0) -> Joined:
        """Join, or learn about the run. Waits up to `patience_s` for a coordinator to answer.

        Raises JoinError with the coordinator's words if it refuses, RunOverError if that is because
        all is done, NoAnswerError if none answers in time.
        """
        response = self._join_until(_join_request(info), patience_s)
        config = run_config.parse(response.run_config, source="run config of the coordinator")
        problem = _problem(response, config, info)
        if problem:
            raise JoinError(f"the coordinator at {self.address} sends nonsense: {problem}")
        self._run_id, self._lease_s = response.run_id, _lease_s(response.lease_ms)
        self._correct_lr = config.optimizer.relay_lr_correction
        return Joined(
            protocol_version=response.protocol_version,
            run_id=response.run_id,
            peer_id=response.peer_id,
            run_config=response.run_config,
            shard=response.shard,
            lease_s=self._lease_s,
            donors=tuple(Donor(one.peer_id, one.address) for one in response.donors),
        )

    def renew(self, renewal: Renewal, on_progress: OnProgress = lambda _: None) -> float | None:
        """Renew the lease: its length in seconds, or None if it has run out and the peer has to
        join again. A coordinator that is away changes nothing: the length is as it was.
        `on_progress` is called with the swarm's progress if there is an answer."""
        try:
            request = self._renew_request(renewal)
            answer = self._ask(
                lambda stub: stub.RenewLease(
                    request, timeout=self._timeout_s, metadata=self._metadata()
                )
            )
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                self._note_back()
                return None
            self._note_away(error)
            return self._lease_s
        self._note_back()
        self._lease_s = _lease_s(answer.lease_ms)
        on_progress(answer.progress)
        return self._lease_s

    def watch(
        self,
        peer_id: PeerId,
        incarnation: int,
        *,
        on_view: OnView,
        on_waiting: OnWaiting,
        on_no_tree: OnNoTree,
        on_failed: OnFailed,
        on_stop: OnStop = lambda _: None,
        on_progress: OnProgress = lambda _: None,
    ) -> None:
        """Have new views, and before the first how many peers are here and needed, handed to the
        callbacks, in a thread of their own; never the same view twice, never one that is older.
        Where one of them raises, that is the end of it, and `on_failed` hears why.

        Call again after joining again: the new watch takes the place of the old.
        """
        request = pb.WatchTopologyRequest(
            run_id=self._run_id, peer_id=peer_id, incarnation=incarnation
        )
        seen = self._end_watch()
        watch = TopologyWatch(
            lambda: self._stub.WatchTopology(request, metadata=self._metadata()),
            peer_id,
            seen=seen,
            correct_lr=self._correct_lr,
            on_view=on_view,
            on_waiting=on_waiting,
            on_no_tree=on_no_tree,
            on_failed=on_failed,
            on_stop=on_stop,
            on_progress=on_progress,
        )
        with self._guard:
            self._watch = watch
        watch.start()

    def evaluations(self) -> dict[PeerId, Evaluation | None] | None:
        """The last evaluation of each member, those included that have finished; None for one that
        has told none. None at all if no coordinator answers in `GOODBYE_TIMEOUT_S`."""
        try:
            status = self._ask(
                lambda stub: stub.GetStatus(
                    pb.GetStatusRequest(), timeout=GOODBYE_TIMEOUT_S, metadata=self._metadata()
                )
            )
        except grpc.RpcError as error:
            log.warning("the coordinator does not say what other sites measured (%s)", words(error))
            return None
        return {one.member.peer_id: evaluation_in(one) for one in status.members}

    def leave(self, peer_id: PeerId, incarnation: int, *, finished: bool = False) -> bool:
        """Say goodbye; `finished` if all steps are done. False if no coordinator heard it: then
        the lease runs out."""
        self._end_watch()
        request = pb.LeaveRequest(
            run_id=self._run_id, peer_id=peer_id, incarnation=incarnation, finished=finished
        )
        try:
            self._call(
                lambda: self._stub.Leave(
                    request,
                    timeout=GOODBYE_TIMEOUT_S,
                    wait_for_ready=True,
                    metadata=self._metadata(),
                )
            )
        except grpc.RpcError as error:
            log.warning("the coordinator did not hear our goodbye (%s)", words(error))
            return False
        return True

    def close(self) -> None:
        """End the watch, and whoever waits for an answer."""
        self._closed.set()
        self._end_watch()
        for channel in self._channels:
            channel.close()

    # --- inside ----------------------------------------------------------------------------------

    def _metadata(self) -> Metadata:
        """The token of now."""
        return self._tokens.metadata() if self._tokens else ()

    @property
    def _stub(self) -> pb_grpc.CoordinatorServiceStub:
        """To whom we speak."""
        return self._stubs[self._leading]

    def _ask(self, call: Callable[[pb_grpc.CoordinatorServiceStub], T]) -> T:
        """Ask the coordinator; if it is away, the others in turn. Those that stand by do not
        answer."""
        for _ in self._stubs[1:]:
            try:
                return self._call(lambda: call(self._stub))
            except grpc.RpcError as error:
                if error.code() not in _AWAY:
                    raise
            self._leading = (self._leading + 1) % len(self._stubs)
        return self._call(lambda: call(self._stub))

    def _call(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except ValueError as error:  # is how gRPC says that a channel is closed
            if not self._closed.is_set():
                raise
            raise _Closed from error

    def _join_until(self, request: pb.JoinRequest, patience_s: float) -> pb.JoinResponse:
        deadline = time.monotonic() + patience_s
        pause_s, next_line = FIRST_RETRY_S, time.monotonic()
        while True:
            left_s = max(0.0, deadline - time.monotonic())
            timeout_s = max(0.1, min(self._timeout_s, left_s))
            try:
                return self._ask(partial(self._join_once, request, timeout_s))
            except grpc.RpcError as error:
                if not self._closed.is_set() and error.code() not in _AWAY:
                    raise self._refusal(error) from error
                if left_s == 0:
                    raise self._no_answer(patience_s, error) from error
            if time.monotonic() >= next_line:
                log.info("waiting for the coordinator at %s, %.0f s more", self.address, left_s)
                next_line += PROGRESS_EVERY_S
            if self._closed.wait(min(pause_s, left_s)):
                raise JoinError("stopped while waiting for the coordinator")
            pause_s = min(2 * pause_s, LAST_RETRY_S)

    def _join_once(
        self, request: pb.JoinRequest, timeout_s: float, stub: pb_grpc.CoordinatorServiceStub
    ) -> pb.JoinResponse:
        return stub.Join(request, timeout=timeout_s, metadata=self._metadata())

    def _refusal(self, error: grpc.RpcError) -> JoinError:
        if error.code() is grpc.StatusCode.UNIMPLEMENTED:
            return JoinError(
                f"--coordinator = {self.address!r}: what answers there is no relayswarm "
                "coordinator; check the address"
            )
        kind = RunOverError if _refusal_of(error) == Refusal.FINISHED.value else JoinError
        return kind(f"the coordinator at {self.address} refused: {words(error)}")

    def _no_answer(self, patience_s: float, error: grpc.RpcError) -> NoAnswerError:
        return NoAnswerError(
            f"--coordinator = {self.address!r}: no coordinator answered within {patience_s:g} s "
            f"({words(error)}); check the address, and that it is running"
        )

    def _renew_request(self, renewal: Renewal) -> pb.RenewLeaseRequest:
        state = renewal.state
        return pb.RenewLeaseRequest(
            run_id=self._run_id,
            peer_id=state.peer_id,
            incarnation=renewal.incarnation,
            epoch=epoch_message(state.epoch),
            step=state.step,
            loss=state.loss,
            state=state.state,
            models_counted=state.models_counted,
            steps_per_s=state.steps_per_s,
            unreachable=sorted(renewal.unreachable),
            swarm_metrics=swarm_message(state.swarm) if state.swarm else None,
            tree=tree_message(renewal.tree) if renewal.tree else None,
            metrics=None if renewal.metrics is None else _snapshot_message(renewal.metrics),
            evaluation=evaluation_message(renewal.evaluation) if renewal.evaluation else None,
        )

    def _note_back(self) -> None:
        if self._away:
            log.info("the coordinator at %s is back", self.address)
        self._away = False

    def _note_away(self, error: grpc.RpcError) -> None:
        if not self._away and not self._closed.is_set():
            log.warning(
                "the coordinator at %s is away (%s): going on without it",
                self.address,
                words(error),
            )
        self._away = True

    def _end_watch(self) -> Epoch:
        """The epoch that the watch had seen last."""
        with self._guard:
            watch, self._watch = self._watch, None
        return watch.end() if watch else Epoch()


class _Closed(grpc.RpcError):
    """A call after the line was closed."""

    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.CANCELLED

    def details(self) -> str:
        return "this line is closed"


def _problem(response: pb.JoinResponse, config: RunConfig, info: JoinInfo) -> str:
    """What cannot be in an answer, or ''."""
    if response.run_id != config.run_id:
        return "run_id: not that of its run config"
    if not ID.fullmatch(response.peer_id) or info.peer_id not in ("", response.peer_id):
        return f"peer_id = {response.peer_id[:64]!r}: not the one that was asked for, or no id"
    if response.shard >= config.shards:
        return f"shard = {response.shard}: there are {config.shards}"
    if not response.lease_ms:
        return "lease_ms = 0: no time to renew it"
    return _donors_problem(response)


def _donors_problem(response: pb.JoinResponse) -> str:
    for donor in response.donors:
        try:
            split_address(donor.address, "address")
        except ConfigError as error:
            return f"donors: {shortened(str(error))}"
    known = all(ID.fullmatch(donor.peer_id) for donor in response.donors)
    return "" if known else "donors: not all of them are ids of peers"


def _snapshot_message(samples: tuple[Sample, ...]) -> pb.MetricSnapshot:
    return pb.MetricSnapshot(
        samples=[
            pb.MetricSample(name=one.name, labels=dict(one.labels), value=one.value)
            for one in samples
        ]
    )


def _lease_s(lease_ms: int) -> float:
    return max(lease_ms / 1000, SHORTEST_LEASE_S)


def _join_request(info: JoinInfo) -> pb.JoinRequest:
    return pb.JoinRequest(
        min_protocol_version=MIN_VERSION,
        max_protocol_version=MAX_VERSION,
        run_id=info.run_id,
        peer_id=info.peer_id,
        advertised_address=info.address,
        metrics_address=info.metrics_address,
        model_fingerprint=info.fingerprint,
        step=info.step,
        incarnation=info.incarnation,
        reachability=pb.REACHABILITY_DIAL_ONLY if info.dial_only else pb.REACHABILITY_BOTH,
        epoch=epoch_message(info.known_epoch) if info.known_epoch else None,
        formats=KNOWN_FORMATS,
        resume_points=[
            pb.ResumePoint(step=step, layout=layout)
            for step, layout in sorted(info.resume_points, reverse=True)
        ],
        tree=tree_message(info.tree) if info.tree else None,
        weight=info.weight,
    )


def _refusal_of(error: grpc.RpcError) -> str | None:
    """Why a join was refused, in the word that is meant for programs."""
    told = [str(one.value) for one in error.trailing_metadata() or () if one.key == REFUSAL_KEY]
    return told[0] if told else None
