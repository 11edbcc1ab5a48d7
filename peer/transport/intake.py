"""How messages come in: a header is decided on, a payload taken, the message reported.

The same for messages that a peer is sent and for the replies that it called for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from peer.algorithms.core import Head, Kind, PeerId, Verdict
from peer.codec.edges import Key, Keys, Lattice
from peer.codec.lattice import FULL_PRECISION
from peer.transport.assembly import Assembly, LatticeAssembly, PlainAssembly
from peer.transport.buffers import BufferPool
from peer.transport.contract import PAIR_KINDS, Contract, Handler
from peer.transport.wire import (
    VERDICTS,
    Chunk,
    Envelope,
    MalformedError,
    check,
    envelope,
    epoch_message,
    parse_unary,
)
from relayswarm.peer.v1 import peer_pb2 as pb

RETRY_AFTER_MS = {Verdict.EPOCH_AHEAD: 10, Verdict.BUSY: 10}

Part: TypeAlias = Chunk | pb.RelayRequest | pb.ExchangeRequest | pb.ExchangeResponse
"""What a stream of a message consists of."""


class Answer(NamedTuple):
    """What a message is answered: see `RelayResponse`."""

    verdict: Verdict
    max_distances: tuple[float, ...] = ()
    wanted_bits: int = FULL_PRECISION


class Intake:
    """All that comes in to one peer."""

    def __init__(self, handler: Handler, contract: Contract) -> None:
        self.handler = handler
        self.contract = contract
        self._pool = BufferPool()
        self._keys = Keys(contract.lattice) if contract.lattice else None

    def begin(self, message: Envelope) -> Reception | Answer:
        """Decide on a header, and start to take what is wanted: `admit`, then `start`."""
        verdict = self.admit(message)
        return self.start(message) if verdict is Verdict.ACCEPTED else Answer(verdict)

    def admit(self, message: Envelope) -> Verdict:
        """Decide on a header, before anything is done about it."""
        verdict = check(message, self.contract)
        if verdict is Verdict.ACCEPTED:
            verdict = self.handler.admit(message.head)
        if verdict is Verdict.ACCEPTED and self._keys and self._keys.has(message.head):
            verdict = Verdict.DUPLICATE  # the algorithm has not come to look at the first one yet
        if verdict is not Verdict.ACCEPTED:
            self.handler.refused(verdict, message.head)
        return verdict

    def start(self, message: Envelope) -> Reception | Answer:
        """Take memory for a message that was admitted. An `Answer` is its end: no payload is
        wanted."""
        if message.head.lost:
            verdict = self.handler.lost(message.head)
            if verdict is not Verdict.ACCEPTED:
                self.handler.refused(verdict, message.head)
            return Answer(verdict)
        assembly = self._assembly(message)
        if isinstance(assembly, Verdict):
            self.handler.refused(assembly, message.head)
            return Answer(assembly)
        return Reception(self.handler, message.head, assembly, self._keys)

    def response(self, answer: Answer) -> pb.RelayResponse:
        """An answer for the wire."""
        state = self.handler.state()
        return pb.RelayResponse(
            verdict=VERDICTS[answer.verdict],
            epoch=epoch_message(state.epoch),
            step=state.step,
            max_distances=answer.max_distances,
            wanted_bits=answer.wanted_bits,
            retry_after_ms=RETRY_AFTER_MS.get(answer.verdict, 0),
        )

    def _assembly(self, message: Envelope) -> Assembly | Verdict:
        """Take memory for a message, and a key if it needs one."""
        assert message.coding is not None  # check() has seen to that
        head, sections = message.head, len(message.sections)
        elements = sum(span.elements for span in message.sections)
        buffer = self._pool.lease(_edge(head), elements, self.contract.dtype_of(head.kind))
        if buffer is None:
            return Verdict.BUSY
        if not isinstance(message.coding, Lattice):
            return PlainAssembly(buffer, sections, message.coding)
        key = self._key(head, sections, message.coding)
        return LatticeAssembly(buffer, message.coding, key) if key else Verdict.DECODE_FAILED

    def _key(self, head: Head, sections: int, coding: Lattice) -> Key | None:
        """Of a pair's message it is this peer's own copy, whatever the core does with it now: where
        some of it is older the result is the same, or else the checksum tells."""
        if head.kind in PAIR_KINDS:
            return Key((self.handler.copy(),), 1.0, coding.is_rotated)
        return self._keys.find(head, sections) if self._keys else None


class Reception:
    """Sees to it that a message once admitted is reported exactly once: received, broken, or asked
    for again with more bits. `keys` are None in a run without the lattice."""

    def __init__(self, handler: Handler, head: Head, assembly: Assembly, keys: Keys | None) -> None:
        self._handler = handler
        self._head = head
        self._keys = keys
        self._reported = False
        self.assembly = assembly

    def __enter__(self) -> Reception:
        return self

    def __exit__(self, *exception: object) -> None:
        if not self._reported:  # cancelled, disconnected or malformed
            self._reported = True
            self.assembly.release()
            self._handler.broken(self._head)

    def take(self, following: Callable[[], Part]) -> Answer:
        """Take the payload, part by part, and report the message."""
        with self:
            return self.end(self._payload(following))

    def _payload(self, following: Callable[[], Part]) -> Verdict:
        while isinstance(part := following(), Chunk):
            if not part.data:  # or a stream of nothing could go on for ever
                raise MalformedError("data: empty; leave out chunks of nothing")
            verdict = self.assembly.add(part.offset, part.data)
            if verdict is not Verdict.ACCEPTED:
                return verdict
        if not part.HasField("trailer"):
            raise MalformedError("header: comes a second time; send each message in its own stream")
        return self.assembly.finish(part.trailer.xxh3)

    def end(self, verdict: Verdict) -> Answer:
        """The payload is over, or not wanted any more."""
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


def take_whole(request: bytes, begin: Callable[[pb.MessageHeader], Reception | Answer]) -> Answer:
    """Take a small message, a RelayUnaryRequest, and report it; `begin` decides on its header.
    Raises MalformedError."""
    message, payload = parse_unary(request)
    if not message.HasField("header"):
        raise MalformedError("header: missing; send one with every message")
    reception = begin(message.header)
    if isinstance(reception, Answer):
        return reception
    with reception:
        if not message.HasField("trailer"):
            raise MalformedError("trailer: missing; send one with every payload")
        verdict = reception.assembly.add(0, payload)
        if verdict is Verdict.ACCEPTED:
            verdict = reception.assembly.finish(message.trailer.xxh3)
        return reception.end(verdict)


def next_header(following: Callable[[], Part], kind: Kind, *, skip: bool = False) -> Envelope:
    """The header that begins an offer or a reply; with `skip` after what is left of another try.
    Raises MalformedError for anything else."""
    part = following()
    while skip and (isinstance(part, Chunk) or part.HasField("trailer")):
        if isinstance(part, Chunk) and not part.data:
            raise MalformedError("data: empty; leave out chunks of nothing")
        part = following()
    if isinstance(part, Chunk) or not part.HasField("header"):
        raise MalformedError(f"header: missing; begin with that of the {kind.value}")
    message = envelope(part.header)
    if message.head.kind is not kind:
        raise MalformedError(f"kind = {part.header.kind}: send an {kind.value} here")
    return message


def answer_in(part: Part) -> pb.RelayResponse:
    """What the other says of a message. Raises MalformedError for anything else."""
    if isinstance(part, Chunk | pb.RelayRequest) or not part.HasField("answer"):
        raise MalformedError("answer: missing; say what became of the message")
    return part.answer


def _edge(head: Head) -> tuple[PeerId, Kind, int]:
    return (head.sender, head.kind, head.tree)
