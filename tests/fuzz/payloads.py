"""Targets: what carries models. Messages, exchanges, vectors on the lattice, a donor's answers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import torch
from google.protobuf.message import DecodeError
from torch import Tensor
from xxhash import xxh3_64_intdigest

from peer.algorithms.core import Epoch, Head, Kind, Verdict
from peer.codec import Format, encode
from peer.codec.edges import Lattice, LatticeSetting
from peer.codec.lattice import BITS, Decoder, Encoder, encoded_bytes
from peer.hellos import Hello
from peer.transport import wire
from peer.transport.collectors import Collectors
from peer.transport.contract import Contract, PeerState, Snapshot
from peer.transport.intake import Intake
from peer.transport.letter import Letter
from peer.transport.remote_model import DamagedError, Download, Expected
from peer.transport.service import PeerService
from peer.transport.visits import Visits
from peer.transport.wire import MalformedError
from relayswarm.net.gate import Gate
from relayswarm.peer.v1 import peer_pb2 as pb
from tests.fuzz.calls import Aborted, Context, packed, unpacked

ELEMENTS = 10

CONTRACTS = (
    Contract("run", 7, ELEMENTS, torch.float32),
    Contract("run", 7, ELEMENTS, torch.float64, trees=2, sections=2),
    Contract("run", 7, ELEMENTS, torch.float16),
    Contract("run", 7, ELEMENTS, torch.float32, lattice=LatticeSetting(), seed=3),
    Contract("run", 7, ELEMENTS, torch.float64, lattice=LatticeSetting(16, True), seed=3),
)

PAIRS = (
    Contract("run", 7, ELEMENTS, torch.float32),
    Contract("run", 7, ELEMENTS, torch.float32, rounding=LatticeSetting(), seed=3),
)


# --- messages: headers, chunks, trailers ----------------------------------------------------------


class Handler:
    """A daemon that wants everything, and looks at what it gets."""

    def __init__(self, contract: Contract) -> None:
        self._contract = contract
        self.admitted = self.ended = self.taken = 0

    def admit(self, head: Head) -> Verdict:  # noqa: ARG002
        self.admitted += 1
        return Verdict.ACCEPTED

    def received(self, head: Head, vectors: tuple[Tensor, ...]) -> Verdict:
        self.ended += 1
        self.taken += 1
        span = self._contract.span(head.kind, head.tree)
        assert span is not None
        assert len(vectors) in self._contract.sections_of(head.kind)
        for vector in vectors:
            assert vector.shape == (span.elements,)
            assert vector.dtype == self._contract.dtype_of(head.kind)
            assert bool(torch.isfinite(vector).all()), "would be averaged"
        return Verdict.ACCEPTED

    def lost(self, head: Head) -> Verdict:  # noqa: ARG002
        self.ended += 1
        return Verdict.ACCEPTED

    def broken(self, head: Head) -> None:  # noqa: ARG002
        self.ended += 1

    def refused(self, verdict: Verdict, head: Head) -> None:  # noqa: ARG002
        assert verdict is not Verdict.ACCEPTED
        self.ended += verdict in (Verdict.DECODE_FAILED, Verdict.BUSY, Verdict.DUPLICATE)

    def denied(self, denial: object, text: str) -> None: ...

    def objection(self, names: frozenset[str]) -> str:  # noqa: ARG002
        return ""

    def bytes_in(self, count: int) -> None: ...

    def copy(self) -> Tensor:
        raise AssertionError("Relay takes no pair's message")

    def greeted(self, hello: Hello) -> bool:  # noqa: ARG002
        raise AssertionError("no message is a BPDU")

    def snapshot(self) -> Snapshot:
        vector = torch.linspace(-1, 1, ELEMENTS, dtype=self._contract.dtype)
        return Snapshot(vector, 4, (("w", (2, 4)), ("b", (2,))))

    def state(self) -> PeerState:
        return PeerState("me", 1, Epoch(1, 2, 3), 4, "training")


def messages(data: bytes) -> bool:
    """Calls of Relay and RelayUnary: the contract and the call by the first byte, then requests,
    each after its length."""
    if not data:
        return False
    contract = CONTRACTS[data[0] % len(CONTRACTS)]
    handler = Handler(contract)
    intake = Intake(handler, contract)
    service = PeerService(intake, Visits(), Collectors(), Gate(None, handler.denied))
    if contract.lattice:
        call(service, [first_message(contract)])
        handler.taken = 0
    call(service, list(unpacked(data[1:])), stream=data[0] >= 128)
    assert handler.admitted <= handler.ended, "an admitted message went unreported"
    if not contract.lattice:  # whose last message is a key
        edges = [("you", kind, tree) for kind in Kind for tree in (0, 1)]
        assert not any(intake._pool.taken(edge) for edge in edges), "a buffer was kept"
    return handler.taken == 1


class Model:
    """What a partner replies with."""

    sections, elements, lattice, value = 1, ELEMENTS, None, None

    def __init__(self, vector: Tensor) -> None:
        self._vector = vector

    def read(self, section: int, start: int, stop: int, out: Tensor | None = None) -> Tensor:
        assert section == 0
        return self._vector[start:stop] if out is None else out.copy_(self._vector[start:stop])

    def close(self) -> None: ...


class Partner(Handler):
    """A daemon that replies to an offer of an even number, and declines others."""

    def __init__(self, contract: Contract) -> None:
        super().__init__(contract)
        self.visits = Visits()
        self._contract = contract
        self.replies = self.reported = 0

    def copy(self) -> Tensor:
        return torch.linspace(-1, 1, ELEMENTS, dtype=self._contract.dtype)

    def received(self, head: Head, vectors: tuple[Tensor, ...]) -> Verdict:
        declines = head.exchange % 2 == 1
        count = 0 if declines else 1
        reply = replace(head, sender="me", kind=Kind.REPLY, count=count, lost=declines)
        model = None if declines else Model(self.copy())
        visit = self.visits.of(head.sender, reply)
        assert visit is not None, "an offer outside a call"
        self.replies += visit.reply(Letter(reply, self._contract, model), self)
        return super().received(head, vectors)

    def lost(self, head: Head) -> Verdict:
        visit = self.visits.of(head.sender, head)
        assert visit is not None
        visit.end()
        return super().lost(head)

    def sent(self, to: str, head: Head, verdict: Verdict | None) -> None:  # noqa: ARG002
        self.reported += 1

    def unreachable(self, peer: str) -> None: ...

    def retried(self, peer: str, reason: str) -> None: ...

    def bytes_out(self, count: int, wire_format: str) -> None: ...


def exchanges(data: bytes) -> bool:
    """A call of Exchange: the contract by the first byte, then requests, each after its length."""
    if not data:
        return False
    contract = PAIRS[data[0] % len(PAIRS)]
    partner, context = Partner(contract), Context()
    service = PeerService(
        Intake(partner, contract), partner.visits, Collectors(), Gate(None, partner.denied)
    )
    responses: list[bytes] = []
    with suppress(Aborted):
        responses.extend(service.exchange(unpacked(data[1:]), context))
    assert partner.admitted <= partner.ended, "an admitted message went unreported"
    assert partner.replies == partner.reported, "a reply went unreported"
    return partner.taken == 1 and len(responses) > 1


def exchange_seeds() -> Iterator[bytes]:
    for index, contract in enumerate(PAIRS):
        vector = torch.linspace(-1, 1, ELEMENTS, dtype=contract.dtype)
        for number in (1, 2):
            head = head_of(Kind.OFFER, exchange=number)
            codings = [None, Lattice(8, 5, expected=(0.1,))] if contract.rounding else [None]
            for coding in codings:
                letter = Letter(head, contract, Model(vector))
                letter._rounded = coding
                letter.write_rounded()
                answer = pb.RelayResponse(verdict=pb.VERDICT_ACCEPTED)
                last = pb.ExchangeRequest(answer=answer).SerializeToString()
                yield bytes([index]) + packed([*letter.requests(pb.ExchangeRequest), last])


def call(service: PeerService, requests: list[bytes], *, stream: bool = False) -> None:
    context: Any = Context()
    try:
        if stream:
            service.relay(iter(requests), context)
        else:
            service.relay_unary(requests[0] if requests else b"", context)
    except Aborted:
        pass


def head_of(kind: Kind = Kind.RELAY, **changes: Any) -> Head:
    given = {"step": 2, "count": 1} | changes
    return Head("you", 1, Epoch(1, 2, 3), kind=kind, **given)


def payload_of(contract: Contract, head: Head, vector: Tensor, sections: int) -> tuple[Any, bytes]:
    span = contract.span(head.kind, head.tree)
    assert span is not None
    message = wire.header(head, contract, [span] * sections)
    fmt = contract.format_of(head.kind)
    return message, bytes(encode(vector[: span.elements], fmt)) * sections


def whole(contract: Contract, vector: Tensor, **head: Any) -> bytes:
    message, payload = payload_of(contract, head_of(**head), vector, contract.sections)
    return wire.unary_bytes(message, xxh3_64_intdigest(payload), payload)


@cache
def first_message(contract: Contract) -> bytes:
    """What makes a key."""
    return whole(contract, torch.arange(ELEMENTS, dtype=contract.dtype), step=1)


def streamed(contract: Contract, vector: Tensor, *, chunk: int, **head: Any) -> list[bytes]:
    message, payload = payload_of(contract, head_of(**head), vector, contract.sections)
    parts = range(0, len(payload), chunk)
    return [
        pb.RelayRequest(header=message).SerializeToString(),
        *(wire.chunk_bytes(start, payload[start : start + chunk]) for start in parts),
        pb.RelayRequest(trailer=pb.Trailer(xxh3=xxh3_64_intdigest(payload))).SerializeToString(),
    ]


def on_lattice(contract: Contract) -> bytes:
    assert contract.lattice is not None
    bits, is_rotated = contract.lattice.bits, contract.lattice.is_rotated
    lattice = Lattice(bits, 5, is_rotated, expected=(0.1,))
    span = contract.span(Kind.RELAY, 0)
    assert span is not None
    message = wire.header(head_of(), contract, [span], lattice=lattice)
    payload = bytes(lattice.encoder(0).encode(torch.arange(ELEMENTS, dtype=contract.dtype) + 0.05))
    return wire.unary_bytes(message, xxh3_64_intdigest(payload), payload)


def metric(contract: Contract) -> bytes:
    head = head_of(Kind.METRIC, metrics=("loss", "accuracy"))
    message, payload = payload_of(contract, head, torch.ones(3, dtype=torch.float64), 2)
    return wire.unary_bytes(message, xxh3_64_intdigest(payload), payload)


def message_seeds() -> Iterator[bytes]:
    for index, contract in enumerate(CONTRACTS):
        vector = torch.linspace(-1, 1, ELEMENTS, dtype=contract.dtype)
        unary, stream = bytes([index]), bytes([128 + (index - 128) % len(CONTRACTS)])
        yield unary + packed([whole(contract, vector)])
        yield unary + packed([metric(contract)])
        yield stream + packed(streamed(contract, vector, chunk=7))
        yield stream + packed(streamed(contract, vector, chunk=1000, tree=contract.trees - 1))
        if contract.lattice:
            yield unary + packed([on_lattice(contract)])


# --- the lattice ----------------------------------------------------------------------------------


def lattice(data: bytes) -> bool:
    """An encoded vector next to a key: bits and rotation by the first byte."""
    if not data:
        return False
    bits, is_rotated = BITS[data[0] % 2], data[0] >= 128
    elements = max(1, (len(data) - 13) // (bits // 8))
    source = data[1:].ljust(encoded_bytes(elements, bits), b"\0")[: encoded_bytes(elements, bits)]
    key = torch.linspace(-1, 1, elements)
    out = torch.full((elements,), math.nan)
    decoder = Decoder(bits, 5, key, is_rotated=is_rotated)
    if not decoder.decode(source, 0, out):
        return False
    assert bool(torch.isfinite(out).all())
    assert 0 <= decoder.distance < math.inf
    if not is_rotated:
        far = float(np.abs(out.numpy() - key.numpy()).max())
        assert far <= decoder.distance * (1 + 1e-5), "further than it says"
    return True


def lattice_seeds() -> Iterator[bytes]:
    for index, bits in enumerate(BITS):
        for is_rotated in (False, True):
            vector = torch.linspace(-1, 1, 24) + 0.01
            first = index + (128 if is_rotated else 0)
            encoded = Encoder(bits, 5, 0.05, is_rotated=is_rotated).encode(vector)
            yield bytes([first]) + bytes(encoded)


# --- models ---------------------------------------------------------------------------------------


def readers(data: bytes) -> bool:
    """Requests of ReadModel, each after its length; those that are equal but for the snapshot's
    bytes may go on where the last one was served."""
    handler = Handler(CONTRACTS[0])
    service = PeerService(
        Intake(handler, CONTRACTS[0]), Visits(), Collectors(), Gate(None, handler.denied)
    )
    context: Any = Context()
    kept = taken = 0
    for part in unpacked(data):
        try:
            request = pb.ReadModelRequest.FromString(part)
            if request.snapshot_id == 1:
                request.snapshot_id = kept
            head, *chunks, _ = map(
                pb.ReadModelResponse.FromString, service.read_model(request, context)
            )
        except (Aborted, DecodeError):
            continue
        kept, size = head.header.snapshot_id, head.header.payload_bytes
        assert sum(len(chunk.data) for chunk in chunks) == size - request.offset
        taken += 1
    assert service._shelf._reading == 0, "a reader is still counted"
    return taken > 0


def reader_seeds() -> Iterator[bytes]:
    asked = [(0, 0), (1, 16), (1, 40), (0, 4), (1, 41), (9, 0)]
    yield packed(
        pb.ReadModelRequest(run_id="run", snapshot_id=kept, offset=offset).SerializeToString()
        for kept, offset in asked
    )


def downloads(data: bytes) -> bool:
    """A donor's responses to a newcomer, each after its length."""
    download = Download(Expected(7, ELEMENTS, torch.float32, last_step=100))
    try:
        for response in unpacked(data):
            download.take(response)
            assert download.offset <= 8 * ELEMENTS, "more than the model"
    except (MalformedError, DamagedError):
        return False
    if not download.complete:
        return False
    model = download.model()
    assert model.vector.shape == (ELEMENTS,)
    assert bool(torch.isfinite(model.vector).all())
    assert sum(t.numel() for t in model.state_dict().values()) == ELEMENTS
    return True


def download_seeds() -> Iterator[bytes]:
    payload = bytes(encode(torch.linspace(-1, 1, ELEMENTS), Format.FLOAT32))
    header = pb.ModelHeader(
        snapshot_id=5,
        run_id="run",
        peer_id="you",
        step=3,
        codec=pb.Codec(format=pb.FORMAT_F32),
        payload_bytes=len(payload),
        model_fingerprint=7,
        tensors=[pb.TensorSpec(name="w", shape=[2, 4]), pb.TensorSpec(name="b", shape=[2])],
    )
    trailer = pb.Trailer(xxh3=xxh3_64_intdigest(payload))
    yield packed(
        [
            pb.ReadModelResponse(header=header).SerializeToString(),
            wire.chunk_bytes(0, payload[:16]),
            wire.chunk_bytes(16, payload[16:]),
            pb.ReadModelResponse(trailer=trailer).SerializeToString(),
        ]
    )
