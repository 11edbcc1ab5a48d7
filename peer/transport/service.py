"""What the calls of PeerService do: every message gets a verdict, every reader a snapshot.

A message that was admitted is reported exactly once, as received or as broken, whatever the
sender or the connection does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, NoReturn

import grpc

from peer.algorithms.core import Epoch, Head, PeerId
from peer.transport.account import Account
from peer.transport.bpdus import parse_hello
from peer.transport.collectors import Collectors
from peer.transport.contract import PAIR_KINDS, Ledger, Parcel
from peer.transport.intake import Answer, Intake, Part, Reception, take_whole
from peer.transport.partner import Partner
from peer.transport.snapshots import BusyError, ForgottenError, KeptSnapshot, SnapshotShelf
from peer.transport.visits import Visit, Visits
from peer.transport.wire import (
    SERVICE,
    AnyPart,
    Chunk,
    MalformedError,
    envelope,
    epoch_message,
    parse_part,
    swarm_message,
)
from relayswarm.net.bounds import Incoming
from relayswarm.net.gate import Denial, Gate, certified_names
from relayswarm.peer.v1 import peer_pb2 as pb


class PeerService:
    """The calls of PeerService, on bytes: payloads are read in place."""

    def __init__(
        self,
        intake: Intake,
        visits: Visits,
        collectors: Collectors,
        gate: Gate,
        ledger: Ledger | None = None,
    ) -> None:
        self._intake, self._visits, self._gate = intake, visits, gate
        self._collectors = collectors
        self._handler = handler = intake.handler
        self._contract = intake.contract
        self._shelf = SnapshotShelf(handler.snapshot)
        self._ledger = ledger

    def rpc_handler(self) -> grpc.GenericRpcHandler:
        """The methods by name, for `grpc.Server.add_generic_rpc_handlers`."""
        methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "Relay": grpc.stream_unary_rpc_method_handler(
                self.relay, response_serializer=pb.RelayResponse.SerializeToString
            ),
            "RelayUnary": grpc.unary_unary_rpc_method_handler(
                self.relay_unary, response_serializer=pb.RelayUnaryResponse.SerializeToString
            ),
            "Exchange": grpc.stream_stream_rpc_method_handler(self.exchange),
            "Collect": grpc.stream_stream_rpc_method_handler(self.collect),
            "ReadModel": grpc.unary_stream_rpc_method_handler(
                self.read_model, request_deserializer=pb.ReadModelRequest.FromString
            ),
            "GetState": grpc.unary_unary_rpc_method_handler(
                self.get_state,
                request_deserializer=pb.GetStateRequest.FromString,
                response_serializer=pb.GetStateResponse.SerializeToString,
            ),
            "SendBpdu": grpc.unary_unary_rpc_method_handler(
                self.send_bpdu,
                request_deserializer=pb.SendBpduRequest.FromString,
                response_serializer=pb.SendBpduResponse.SerializeToString,
            ),
        }
        return grpc.method_handlers_generic_handler(SERVICE, methods)

    # --- messages ---------------------------------------------------------------------------

    def relay(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> pb.RelayResponse:
        """One message as a stream; answered as soon as the verdict is known."""
        try:
            return self._respond(self._take_stream(requests, context))
        except MalformedError as error:
            self._refuse_malformed(context, error)

    def relay_unary(self, request: bytes, context: grpc.ServicerContext) -> pb.RelayUnaryResponse:
        """One message in a single request."""
        try:
            return pb.RelayUnaryResponse(response=self._respond(self._take_unary(request, context)))
        except MalformedError as error:
            self._refuse_malformed(context, error)

    def _take_unary(self, request: bytes, context: grpc.ServicerContext) -> Answer:
        self._handler.bytes_in(len(request))
        return take_whole(request, lambda header: self._begin(header, context))

    def _take_stream(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Answer:
        first = self._next(requests, pb.RelayRequest)
        if not isinstance(first, pb.RelayRequest) or not first.HasField("header"):
            raise MalformedError("header: missing; send it in the first request")
        reception = self._begin(first.header, context)
        if isinstance(reception, Answer):
            return reception
        return reception.take(lambda: self._next(requests, pb.RelayRequest))

    def _next(self, requests: Iterator[bytes], kind: type[AnyPart]) -> Chunk | AnyPart:
        request = next(requests, None)
        if request is None:
            raise MalformedError("the stream ended too early; end it with a trailer")
        self._handler.bytes_in(len(request))
        return parse_part(request, kind)

    def _begin(self, header: pb.MessageHeader, context: grpc.ServicerContext) -> Reception | Answer:
        message = envelope(header)
        if message.head.kind in PAIR_KINDS:
            raise MalformedError(f"kind = {header.kind}: of a pair; send it in a call of Exchange")
        self._gate.speaks_for(context, message.head.sender)
        return self._intake.begin(message)

    def _refuse_malformed(self, context: grpc.ServicerContext, error: MalformedError) -> NoReturn:
        self._deny(context, grpc.StatusCode.INVALID_ARGUMENT, Denial.MALFORMED, str(error))

    def _deny(
        self, context: grpc.ServicerContext, code: grpc.StatusCode, denial: Denial, text: str
    ) -> NoReturn:
        self._handler.denied(denial, text)
        context.abort(code, text)
        raise AssertionError("abort raises")

    def _respond(self, answer: Answer) -> pb.RelayResponse:
        return self._intake.response(answer)

    # --- exchanges ----------------------------------------------------------------------------

    def exchange(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        """A pairwise exchange in which this peer is the partner."""

        def following() -> Part:
            return self._next(requests, pb.ExchangeRequest)

        def is_from(peer: PeerId) -> None:
            self._gate.speaks_for(context, peer)

        def open_visit(offer: Head) -> AbstractContextManager[Visit | None]:
            return self._visits.open(offer, context)

        try:
            yield from Partner(self._intake, following, is_from, open_visit).responses()
        except MalformedError as error:
            self._refuse_malformed(context, error)

    def collect(self, requests: Incoming, context: grpc.ServicerContext) -> Iterator[bytes]:
        """A neighbour that can only dial out offers a stream for calls of this peer's."""
        try:
            first = self._next(requests, pb.CollectRequest)
            if not isinstance(first, pb.CollectRequest) or not first.HasField("collector"):
                raise MalformedError("collector: missing; say who collects in the first request")
        except MalformedError as error:
            self._refuse_malformed(context, error)
        collector = first.collector
        self._require_run(collector.run_id, context)
        self._gate.speaks_for(context, collector.peer_id)
        stream = self._collectors.open(collector, requests, context)
        if stream is None:
            text = f"peer_id = {collector.peer_id[:64]!r}: in this life no neighbour that can only "
            text += "dial out, in this peer's present view; try again once it has yours"
            self._deny(context, grpc.StatusCode.FAILED_PRECONDITION, Denial.STRANGER, text)
        requests.free()
        yield from stream.parts()
        if not stream.is_used:
            context.abort(grpc.StatusCode.ABORTED, "no call came: a later stream takes its place")

    # --- state and model ----------------------------------------------------------------------

    def get_state(
        self,
        request: pb.GetStateRequest,  # noqa: ARG002
        context: grpc.ServicerContext,  # noqa: ARG002
    ) -> pb.GetStateResponse:
        """How this peer is doing."""
        state = self._handler.state()
        return pb.GetStateResponse(
            run_id=self._contract.run_id,
            peer_id=state.peer_id,
            incarnation=state.incarnation,
            epoch=epoch_message(state.epoch),
            step=state.step,
            loss=state.loss,
            state=state.state,
            models_counted=state.models_counted,
            steps_per_s=state.steps_per_s,
            swarm_metrics=swarm_message(state.swarm) if state.swarm else None,
        )

    def send_bpdu(
        self, request: pb.SendBpduRequest, context: grpc.ServicerContext
    ) -> pb.SendBpduResponse:
        """A neighbour's bridge speaks."""
        self._require_run(request.run_id, context)
        try:
            hello = parse_hello(request)
        except MalformedError as error:
            self._refuse_malformed(context, error)
        self._gate.speaks_for(context, hello.seat.peer)
        if not self._handler.greeted(hello):
            text = "topology.self_heal: not set in this run; send no BPDUs"
            self._deny(context, grpc.StatusCode.FAILED_PRECONDITION, Denial.RUN, text)
        return pb.SendBpduResponse()

    def _require_run(self, run_id: str, context: grpc.ServicerContext) -> None:
        if run_id != self._contract.run_id:
            text = f"run_id = {run_id[:64]!r}: this peer trains {self._contract.run_id!r}"
            self._deny(context, grpc.StatusCode.FAILED_PRECONDITION, Denial.RUN, text)

    def read_model(
        self, request: pb.ReadModelRequest, context: grpc.ServicerContext
    ) -> Iterator[bytes]:
        """The model from an immutable snapshot."""
        self._require_run(request.run_id, context)
        names = certified_names(context)
        objection = self._handler.objection(names)
        if objection:
            self._deny(context, grpc.StatusCode.PERMISSION_DENIED, Denial.LAW, objection)
        try:
            with self._shelf.reading(request.snapshot_id) as kept:
                if request.offset > len(kept.payload):
                    text = f"offset = {request.offset}: the model has {len(kept.payload)} bytes"
                    self._deny(context, grpc.StatusCode.OUT_OF_RANGE, Denial.MALFORMED, text)
                state = self._handler.state()
                account = self._account(kept, request.offset, state.epoch, names, context)
                yield from kept.responses(self._contract, state.peer_id, request.offset, account)
        except ForgottenError:
            text = f"snapshot_id = {request.snapshot_id}: forgotten; ask for a new one with 0"
            self._deny(context, grpc.StatusCode.NOT_FOUND, Denial.FORGOTTEN, text)
        except BusyError:
            text = "too many are reading this peer's model; try again later, or another peer"
            self._deny(context, grpc.StatusCode.RESOURCE_EXHAUSTED, Denial.BUSY, text)

    def _account(
        self,
        kept: KeptSnapshot,
        offset: int,
        epoch: Epoch,
        names: frozenset[str],
        context: grpc.ServicerContext,
    ) -> Account:
        receiver, known_by = ", ".join(sorted(names)), "certificate"
        if not names:
            receiver, known_by = str(context.peer()), "address"
        when = f"{epoch.term}.{epoch.number}"
        step = kept.snapshot.step
        return Account(self._ledger, Parcel(receiver, known_by, "model", when, step, 0, 0, offset))
