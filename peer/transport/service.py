"""What the calls of PeerService do: every message gets a verdict, every reader a snapshot.

A message that was admitted is reported exactly once, as received or as broken, whatever the
sender or the connection does.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, NoReturn

import grpc

from peer.algorithms.core import Head, Kind, PeerId, Verdict
from peer.codec.edges import Keys, Lattice
from peer.codec.lattice import FULL_PRECISION
from peer.transport.assembly import Assembly, LatticeAssembly, PlainAssembly
from peer.transport.buffers import BufferPool
from peer.transport.contract import Contract, Handler
from peer.transport.snapshots import BusyError, ForgottenError, SnapshotShelf
from peer.transport.wire import (
    SERVICE,
    VERDICTS,
    Chunk,
    Envelope,
    MalformedError,
    check,
    envelope,
    epoch_message,
    parse_request,
    parse_unary,
    swarm_message,
)
from relayswarm.net.gate import Denial, Gate
from relayswarm.peer.v1 import peer_pb2 as pb

RETRY_AFTER_MS = {Verdict.EPOCH_AHEAD: 10, Verdict.BUSY: 10}


class Answer(NamedTuple):
    """What a message is answered: see `RelayResponse`."""

    verdict: Verdict
    max_distances: tuple[float, ...] = ()
    wanted_bits: int = FULL_PRECISION


class PeerService:
    """The calls of PeerService, on bytes: payloads are read in place."""

    def __init__(self, handler: Handler, contract: Contract, gate: Gate) -> None:
        self._handler = handler
        self._gate = gate
        self._contract = contract
        self._pool = BufferPool()
        self._keys = Keys(contract.lattice) if contract.lattice else None
        self._shelf = SnapshotShelf(handler.snapshot)

    def rpc_handler(self) -> grpc.GenericRpcHandler:
        """The methods by name, for `grpc.Server.add_generic_rpc_handlers`."""
        methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "Relay": grpc.stream_unary_rpc_method_handler(
                self.relay, response_serializer=pb.RelayResponse.SerializeToString
            ),
            "RelayUnary": grpc.unary_unary_rpc_method_handler(
                self.relay_unary, response_serializer=pb.RelayUnaryResponse.SerializeToString
            ),
            "ReadModel": grpc.unary_stream_rpc_method_handler(
                self.read_model, request_deserializer=pb.ReadModelRequest.FromString
            ),
            "GetState": grpc.unary_unary_rpc_method_handler(
                self.get_state,
                request_deserializer=pb.GetStateRequest.FromString,
                response_serializer=pb.GetStateResponse.SerializeToString,
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
        message, payload = parse_unary(request)
        if not message.HasField("header"):
            raise MalformedError("header: missing; send one with every message")
        reception = self._begin(message.header, context)
        if isinstance(reception, Answer):
            return reception
        with reception:
            if not message.HasField("trailer"):
                raise MalformedError("trailer: missing; send one with every payload")
            verdict = reception.assembly.add(0, payload)
            if verdict is Verdict.ACCEPTED:
                verdict = reception.assembly.finish(message.trailer.xxh3)
            return reception.end(verdict)

    def _take_stream(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Answer:
        first = self._next(requests)
        if not isinstance(first, pb.RelayRequest) or not first.HasField("header"):
            raise MalformedError("header: missing; send it in the first request")
        reception = self._begin(first.header, context)
        if isinstance(reception, Answer):
            return reception
        with reception:
            return reception.end(self._take_payload(requests, reception.assembly))

    def _take_payload(self, requests: Iterator[bytes], assembly: Assembly) -> Verdict:
        while isinstance(part := self._next(requests), Chunk):
            if not part.data:  # or a stream of nothing could go on for ever
                raise MalformedError("data: empty; leave out chunks of nothing")
            verdict = assembly.add(part.offset, part.data)
            if verdict is not Verdict.ACCEPTED:
                return verdict
        if not part.HasField("trailer"):
            raise MalformedError("header: comes a second time; send each message in its own stream")
        return assembly.finish(part.trailer.xxh3)

    def _next(self, requests: Iterator[bytes]) -> Chunk | pb.RelayRequest:
        request = next(requests, None)
        if request is None:
            raise MalformedError("the stream ended too early; end it with a trailer")
        self._handler.bytes_in(len(request))
        return parse_request(request)

    def _begin(
        self, header: pb.MessageHeader, context: grpc.ServicerContext
    ) -> _Reception | Answer:
        """Decide on a header; memory is taken only for a message that is wanted and fits."""
        message = envelope(header)
        self._gate.speaks_for(context, message.head.sender)
        verdict = check(message, self._contract)
        if verdict is Verdict.ACCEPTED:
            verdict = self._handler.admit(message.head)
        if verdict is Verdict.ACCEPTED and self._keys and self._keys.has(message.head):
            verdict = Verdict.DUPLICATE  # the algorithm has not come to look at the first one yet
        if verdict is not Verdict.ACCEPTED:
            return self._refuse(verdict, message.head)
        if message.head.lost:
            self._handler.lost(message.head)
            return Answer(verdict)
        assembly = self._assembly(message)
        if isinstance(assembly, Verdict):
            return self._refuse(assembly, message.head)
        return _Reception(self._handler, message.head, assembly, self._keys)

    def _assembly(self, message: Envelope) -> Assembly | Verdict:
        """Take memory for a message, and a key if it needs one."""
        assert message.coding is not None  # check() has seen to that
        head, sections = message.head, len(message.sections)
        elements = sum(span.elements for span in message.sections)
        buffer = self._pool.lease(_edge(head), elements, self._contract.dtype_of(head.kind))
        if buffer is None:
            return Verdict.BUSY
        if not isinstance(message.coding, Lattice):
            return PlainAssembly(buffer, sections, message.coding)
        key = self._keys.find(head, sections) if self._keys else None
        return LatticeAssembly(buffer, message.coding, key) if key else Verdict.DECODE_FAILED

    def _refuse_malformed(self, context: grpc.ServicerContext, error: MalformedError) -> NoReturn:
        self._deny(context, grpc.StatusCode.INVALID_ARGUMENT, Denial.MALFORMED, str(error))

    def _deny(
        self, context: grpc.ServicerContext, code: grpc.StatusCode, denial: Denial, text: str
    ) -> NoReturn:
        self._handler.denied(denial, text)
        context.abort(code, text)
        raise AssertionError("abort raises")

    def _refuse(self, verdict: Verdict, head: Head) -> Answer:
        self._handler.refused(verdict, head)
        return Answer(verdict)

    def _respond(self, answer: Answer) -> pb.RelayResponse:
        state = self._handler.state()
        return pb.RelayResponse(
            verdict=VERDICTS[answer.verdict],
            epoch=epoch_message(state.epoch),
            step=state.step,
            max_distances=answer.max_distances,
            wanted_bits=answer.wanted_bits,
            retry_after_ms=RETRY_AFTER_MS.get(answer.verdict, 0),
        )

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
            swarm_metrics=swarm_message(state.swarm) if state.swarm else None,
        )

    def read_model(
        self, request: pb.ReadModelRequest, context: grpc.ServicerContext
    ) -> Iterator[bytes]:
        """The model from an immutable snapshot."""
        if request.run_id != self._contract.run_id:
            text = f"run_id = {request.run_id[:64]!r}: this peer trains {self._contract.run_id!r}"
            self._deny(context, grpc.StatusCode.FAILED_PRECONDITION, Denial.RUN, text)
        try:
            with self._shelf.reading(request.snapshot_id) as kept:
                if request.offset > len(kept.payload):
                    text = f"offset = {request.offset}: the model has {len(kept.payload)} bytes"
                    self._deny(context, grpc.StatusCode.OUT_OF_RANGE, Denial.MALFORMED, text)
                peer = self._handler.state().peer_id
                yield from kept.responses(self._contract, peer, request.offset)
        except ForgottenError:
            text = f"snapshot_id = {request.snapshot_id}: forgotten; ask for a new one with 0"
            self._deny(context, grpc.StatusCode.NOT_FOUND, Denial.FORGOTTEN, text)
        except BusyError:
            text = "too many are reading this peer's model; try again later, or another peer"
            self._deny(context, grpc.StatusCode.RESOURCE_EXHAUSTED, Denial.BUSY, text)


class _Reception:
    """Sees to it that a message once admitted is reported exactly once: received, broken, or asked
    for again with more bits. `keys` are None in a run without the lattice."""

    def __init__(self, handler: Handler, head: Head, assembly: Assembly, keys: Keys | None) -> None:
        self._handler = handler
        self._head = head
        self._keys = keys
        self._reported = False
        self.assembly = assembly

    def __enter__(self) -> _Reception:
        return self

    def __exit__(self, *exception: object) -> None:
        if not self._reported:  # cancelled, disconnected or malformed
            self.assembly.release()
            self._handler.broken(self._head)

    def end(self, verdict: Verdict) -> Answer:
        self._reported = True
        answer = self._accept() if verdict is Verdict.ACCEPTED else self._turn_down(verdict)
        if answer.verdict is not Verdict.ACCEPTED:
            self._handler.refused(answer.verdict, self._head)
        return answer

    def _accept(self) -> Answer:
        assembly, head = self.assembly, self._head
        distances = assembly.distances if isinstance(assembly, LatticeAssembly) else ()
        vectors = assembly.take()
        if self._keys and not distances:
            key = self._keys.find(head, len(vectors))
            distances = key.distances(vectors) if key else ()
        verdict = self._handler.received(head, vectors)
        if self._keys and verdict is Verdict.ACCEPTED:
            self._keys.remember(head, vectors)
        return Answer(verdict, distances)

    def _turn_down(self, verdict: Verdict) -> Answer:
        assembly = self.assembly
        assembly.release()
        if isinstance(assembly, LatticeAssembly) and verdict is Verdict.DECODE_FAILED:
            return Answer(verdict, wanted_bits=assembly.wanted_bits)
        self._handler.broken(self._head)
        return Answer(verdict)


def _edge(head: Head) -> tuple[PeerId, Kind, int]:
    return (head.sender, head.kind, head.tree)
