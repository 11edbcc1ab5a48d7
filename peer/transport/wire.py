"""Messages <-> protobuf: headers, verdicts, and the framing of payloads.

Payload bytes never pass through protobuf's classes on their way out: a request's bytes are put
together by hand from a prefix and the payload, in a form that any protobuf parser reads. On the
way in that form is recognized and read in place; whatever else a foreign encoder may write goes
through the generated class.
"""

from __future__ import annotations

import ctypes
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from google.protobuf.message import DecodeError, Message

from peer.algorithms.core import Epoch, Head, Kind, Mean, Verdict
from peer.algorithms.metric_relay import MAX_METRICS, MAX_NAME, SwarmMean
from peer.codec import Bytes, Format
from peer.codec.edges import Coding, Lattice, payload_bytes
from peer.transport.contract import PROTOCOL_VERSION, Contract, Span
from relayswarm.peer.v1 import peer_pb2 as pb

SERVICE = pb.DESCRIPTOR.services_by_name["PeerService"].full_name

CHUNK_BYTES = 1 << 20
"""Payload bytes in a streamed request; a message below that goes in one unary request."""

LARGE_CHUNK_BYTES = 2 * CHUNK_BYTES
"""In a request of a long message: each request has four threads take turns, at a third of a
millisecond of the processor's together. Of a short one it would be too much that waits for the
first request to be formed, and for the last one to be taken."""

LONG_BYTES = 16 * LARGE_CHUNK_BYTES

MESSAGE_LIMIT = LARGE_CHUNK_BYTES + (1 << 16)
"""Largest request or response taken: a large chunk, and a header."""

HEADER_LIMIT = 1 << 16
"""Bytes of a message besides its payload: many small fields would take far more memory parsed."""

KINDS: dict[Kind, pb.Kind.ValueType] = {kind: pb.Kind.Value(f"KIND_{kind.name}") for kind in Kind}
VERDICTS: dict[Verdict, pb.Verdict.ValueType] = {
    verdict: pb.Verdict.Value(f"VERDICT_{verdict.name}") for verdict in Verdict
}
FORMATS: dict[Format, pb.Format.ValueType] = {
    Format.FLOAT64: pb.FORMAT_F64,
    Format.FLOAT32: pb.FORMAT_F32,
    Format.BFLOAT16: pb.FORMAT_BF16,
    Format.FLOAT16: pb.FORMAT_F16,
}
KNOWN_FORMATS = (*FORMATS.values(), pb.FORMAT_LATTICE)
"""All that this version reads and writes."""
_KIND_OF: dict[int, Kind] = {number: kind for kind, number in KINDS.items()}
_VERDICT_OF: dict[int, Verdict] = {number: verdict for verdict, number in VERDICTS.items()}
FORMAT_OF: dict[int, Format] = {number: fmt for fmt, number in FORMATS.items()}

_OFFSET_TAG = b"\x09"  # field 1, fixed64
_DATA_TAG = b"\x82\x01"  # field 16, length-delimited
_WHOLE_TAG = b"\x8a\x01"  # field 17, length-delimited
_DATA_FIELD, _LENGTH_DELIMITED = 16, 2
_WIDTHS = {1: 8, 5: 4}  # bytes of fixed64 and fixed32
_LENGTH_BYTES = 5  # a varint padded to this; holds lengths below 2^35
_CHUNK_PREFIX = struct.Struct(f"<cQ2s{_LENGTH_BYTES}s")
PREFIX_BYTES = _CHUNK_PREFIX.size  # 16: elements behind it stay aligned
_UNARY_PREFIX = struct.Struct(f"<2s{_LENGTH_BYTES}s")


class MalformedError(ValueError):
    """Bytes that are no message of this protocol; answered with INVALID_ARGUMENT."""


class Chunk(NamedTuple):
    """Payload bytes and where they begin in the payload."""

    offset: int
    data: memoryview


@dataclass(frozen=True, slots=True)
class Envelope:
    """A header as it came: what the algorithm may see, and what the transport checks."""

    head: Head
    version: int
    run_id: str
    fingerprint: int
    coding: Coding | None  # None: one that this version does not know
    sections: tuple[Span, ...]
    payload_bytes: int


# --- headers ------------------------------------------------------------------------------------


def header(
    head: Head,
    contract: Contract,
    sections: Sequence[Span] = (),
    attempt: int = 0,
    lattice: Lattice | None = None,
) -> pb.MessageHeader:
    """The header of a message with these sections, on the lattice or in the contract's format.

    The first section is the model (or a sum of models), further ones are corrections; of metrics
    each has a section.
    """
    coding = lattice or contract.format_of(head.kind)
    return pb.MessageHeader(
        protocol_version=PROTOCOL_VERSION,
        run_id=contract.run_id,
        sender=head.sender,
        incarnation=head.incarnation,
        epoch=epoch_message(head.epoch),
        step=head.step,
        round=head.round,
        tree=head.tree,
        kind=KINDS[head.kind],
        count=int(head.count),
        weight=float(head.weight),
        sections=_sections(head, sections),
        codec=_codec(coding),
        payload_bytes=sum(payload_bytes(coding, 1, span.elements) for span in sections),
        lost=head.lost,
        left=head.left,
        attempt=attempt,
        exchange_number=head.exchange,
        model_fingerprint=contract.fingerprint,
        mean=_mean_message(head.mean) if head.mean else None,
    )


def _codec(coding: Coding) -> pb.Codec:
    if not isinstance(coding, Lattice):
        return pb.Codec(format=FORMATS[coding])
    return pb.Codec(
        format=pb.FORMAT_LATTICE,
        bits=coding.bits,
        rotated=coding.is_rotated,
        dither_seed=coding.seed,
    )


def _coding(codec: pb.Codec) -> Coding | None:
    if codec.format == pb.FORMAT_LATTICE:
        return Lattice(codec.bits, codec.dither_seed, codec.rotated)
    return FORMAT_OF.get(codec.format)


def _sections(head: Head, spans: Sequence[Span]) -> list[pb.Section]:
    if head.kind is Kind.METRIC:
        named = zip(head.metrics, spans, strict=True) if spans else ()
        role = _role(pb.KIND_METRIC, 0)
        return [pb.Section(role=role, elements=s.elements, metric=name) for name, s in named]
    return [_section(index, span) for index, span in enumerate(spans)]


def _section(index: int, span: Span) -> pb.Section:
    role = _role(pb.KIND_RELAY, index)
    return pb.Section(role=role, first_element=span.start, elements=span.elements)


def _role(kind: pb.Kind.ValueType, index: int) -> pb.SectionRole.ValueType:
    if kind == pb.KIND_METRIC:
        return pb.SECTION_ROLE_METRIC
    return pb.SECTION_ROLE_CORRECTION if index else pb.SECTION_ROLE_MODEL


def envelope(message: pb.MessageHeader) -> Envelope:
    """Read a header. Raises MalformedError for what no correct sender can have meant."""
    if message.kind not in _KIND_OF:
        raise MalformedError(f"kind = {message.kind}: not a kind of message; send 1 to 6")
    if not message.sender:
        raise MalformedError("sender = '': empty; send the peer's id")
    if not message.HasField("epoch"):
        raise MalformedError("epoch: missing; send the epoch of the sender's view")
    if not math.isfinite(message.weight):
        raise MalformedError(f"weight = {message.weight}: not finite; send 1 if there is none")
    if message.codec.format == pb.FORMAT_UNSPECIFIED and not message.lost:
        raise MalformedError("codec.format = 0: not specified; name the payload's format")
    for index, section in enumerate(message.sections):
        if section.role != _role(message.kind, index):
            expected = pb.SectionRole.Name(_role(message.kind, index))
            raise MalformedError(f"sections.role = {section.role}: expected {expected} there")
    return Envelope(
        head=_head(message),
        version=message.protocol_version,
        run_id=message.run_id,
        fingerprint=message.model_fingerprint,
        coding=_coding(message.codec),
        sections=tuple(
            Span(section.first_element, section.first_element + section.elements)
            for section in message.sections
        ),
        payload_bytes=message.payload_bytes,
    )


def _head(message: pb.MessageHeader) -> Head:
    metrics = message.sections if message.kind == pb.KIND_METRIC else ()
    return Head(
        sender=message.sender,
        incarnation=message.incarnation,
        epoch=_epoch(message.epoch),
        step=message.step,
        kind=_KIND_OF[message.kind],
        round=message.round,
        tree=message.tree,
        count=message.count,
        weight=message.weight,
        lost=message.lost,
        left=message.lost and message.left,
        exchange=message.exchange_number,
        metrics=tuple(section.metric for section in metrics),
        mean=_mean(message),
    )


def _mean_message(mean: Mean) -> pb.Mean:
    weights = [float(mean.weights[peer]) for peer in mean.members] if mean.weights else []
    return pb.Mean(epoch=epoch_message(mean.epoch), members=mean.members, weights=weights)


def _mean(message: pb.MessageHeader) -> Mean | None:
    """Raises MalformedError if it does not say what each model weighs, or no number does."""
    if not message.HasField("mean"):
        return None
    mean = message.mean
    if len(mean.weights) not in (0, len(mean.members)):
        text = f"mean.weights: {len(mean.weights)} of them, for {len(mean.members)} members"
        raise MalformedError(f"{text}; send one for each, or none")
    if not all(map(math.isfinite, mean.weights)):
        raise MalformedError("mean.weights: not all finite; send what models weigh")
    weights = dict(zip(mean.members, mean.weights, strict=False))
    return Mean(_epoch(mean.epoch), (*mean.members,), weights)


def _epoch(message: pb.Epoch) -> Epoch:
    return Epoch(message.term, message.number, message.digest)


def epoch_message(epoch: Epoch) -> pb.Epoch:
    """An epoch for the wire."""
    return pb.Epoch(term=epoch.term, number=epoch.number, digest=epoch.digest)


def swarm_message(swarm: SwarmMean) -> pb.SwarmMetrics:
    """What a peer knows of the swarm's metrics, for the wire."""
    message = pb.SwarmMetrics(step=swarm.step, peers=swarm.peers)
    for name, one in swarm.sums.items():
        mean = math.nan if one.mean is None else float(one.mean)
        message.metrics.add(name=name, mean=mean, weight=float(one.weight), peers=one.peers)
    return message


def check(message: Envelope, contract: Contract) -> Verdict:
    """Hold a header against the contract; ACCEPTED means that the payload's length is right."""
    if message.version not in contract.versions:
        return Verdict.VERSION
    if message.run_id != contract.run_id:
        return Verdict.FOREIGN_RUN
    span = contract.span(message.head.kind, message.head.tree)
    if span is None:
        return Verdict.NOT_A_NEIGHBOUR
    if message.fingerprint != contract.fingerprint:
        return Verdict.BAD_LENGTH
    if message.head.lost:
        return Verdict.ACCEPTED
    if message.coding is None or not contract.takes(message.head.kind, message.coding):
        return Verdict.DECODE_FAILED
    if not _fit(message.head.metrics):
        return Verdict.BAD_METRIC
    return _check_length(message, span, contract, message.coding)


def _fit(metrics: Sequence[str]) -> bool:
    """Whether these can be names of metrics: not too many, not too long, none of them twice."""
    sizes = all(0 < len(name) <= MAX_NAME for name in metrics)
    return len(metrics) <= MAX_METRICS and sizes and len(set(metrics)) == len(metrics)


def _check_length(message: Envelope, span: Span, contract: Contract, coding: Coding) -> Verdict:
    sections = len(message.sections)
    fits = (
        sections in contract.sections_of(message.head.kind)
        and all(section == span for section in message.sections)
        and message.payload_bytes == payload_bytes(coding, sections, span.elements)
    )
    return Verdict.ACCEPTED if fits else Verdict.BAD_LENGTH


def verdict_of(response: pb.RelayResponse) -> Verdict | None:
    """The verdict in an answer; None if it is one that this version does not know."""
    return _VERDICT_OF.get(response.verdict)


# --- framing ------------------------------------------------------------------------------------


def chunk_bytes(offset: int, data: Bytes) -> bytes:
    """A `RelayRequest` or `ReadModelResponse` {offset, data}: a 16-byte prefix, then the data."""
    return b"".join((_chunk_prefix(offset, len(data)), data))


def _chunk_prefix(offset: int, size: int) -> bytes:
    return _CHUNK_PREFIX.pack(_OFFSET_TAG, offset, _DATA_TAG, _padded_varint(size))


def chunk_size(payload: int) -> int:
    """Payload bytes in each request of a streamed message that has so many."""
    return LARGE_CHUNK_BYTES if payload >= LONG_BYTES else CHUNK_BYTES


class OpenChunk:
    """What `chunk_bytes` returns, while its data is still to be written: into `data`, aligned
    memory of `size` > 0 bytes. No byte is copied."""

    def __init__(self, offset: int, size: int) -> None:
        self._request: bytes = _new_bytes(None, PREFIX_BYTES + size)
        address = _address_of(self._request)
        memory = memoryview((ctypes.c_char * len(self._request)).from_address(address)).cast("B")
        memory[:PREFIX_BYTES] = _chunk_prefix(offset, size)
        self.data = memory[PREFIX_BYTES:]

    def close(self) -> bytes:
        """All is written, and nothing will write to `data` any more."""
        self.data.release()
        return self._request


# As Python's C API has it, bytes that were made without contents may be written to by whoever made
# them. Any other way fills them first.
_new_bytes = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_ssize_t)(
    ("PyBytes_FromStringAndSize", ctypes.pythonapi)
)
_address_of = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object)(
    ("PyBytes_AsString", ctypes.pythonapi)
)


AnyPart = TypeVar(
    "AnyPart", pb.RelayRequest, pb.ExchangeRequest, pb.ExchangeResponse, pb.CollectRequest
)


def parse_part(data: bytes, kind: type[AnyPart]) -> Chunk | AnyPart:
    """Read a part of a stream: a chunk, in place where possible, else whatever else it holds."""
    chunk = _chunk_in_place(data)
    if chunk is not None:
        return chunk
    message = kind()
    _check_small(data)
    _parse(message, data)
    held = [field.name for field, _ in message.ListFields() if field.name != "offset"]
    if len(held) > 1:
        raise MalformedError(f"a part holds one of {', '.join(sorted(held))}; send them apart")
    return message if held and held != ["data"] else Chunk(message.offset, memoryview(message.data))


def parse_response(response: bytes) -> Chunk | pb.ReadModelResponse:
    """Read a part of a model: a chunk, in place where possible, else header or trailer."""
    chunk = _chunk_in_place(response)
    if chunk is not None:
        return chunk
    message = pb.ReadModelResponse()
    _parse(message, response)
    if message.HasField("header") or message.HasField("trailer"):
        return message
    return Chunk(message.offset, memoryview(message.data))


def _chunk_in_place(request: bytes) -> Chunk | None:
    """The chunk, if the bytes are laid out as `chunk_bytes` does it."""
    if len(request) < _CHUNK_PREFIX.size:
        return None
    offset_tag, offset, data_tag, length = _CHUNK_PREFIX.unpack_from(request)
    size = len(request) - _CHUNK_PREFIX.size
    if (offset_tag, data_tag, length) != (_OFFSET_TAG, _DATA_TAG, _padded_varint(size)):
        return None
    return Chunk(offset, memoryview(request)[_CHUNK_PREFIX.size :])


def unary_bytes(message: pb.MessageHeader, xxh3: int, payload: Bytes) -> bytes:
    """A `RelayUnaryRequest`, the payload first, so that it can be found without parsing."""
    rest = pb.RelayUnaryRequest(header=message, trailer=pb.Trailer(xxh3=xxh3))
    prefix = _UNARY_PREFIX.pack(_DATA_TAG, _padded_varint(len(payload)))
    return b"".join((prefix, payload, rest.SerializeToString()))


def parse_unary(request: bytes) -> tuple[pb.RelayUnaryRequest, memoryview]:
    """Read a whole message: header and trailer, and the payload, in place where possible."""
    message = pb.RelayUnaryRequest()
    end = _payload_end(request) or 0
    _check_small(request[end:])
    _parse(message, request[end:])
    if not end:
        return message, memoryview(message.data)
    if message.data:  # a repeated field: by protobuf's rule the last one counts
        return message, memoryview(message.data)
    return message, memoryview(request)[_UNARY_PREFIX.size : end]


def whole_part(request: bytes) -> bytes:
    """A `RelayUnaryRequest` for a collector."""
    return pb.CollectResponse(whole=request).SerializeToString()


def whole_in(part: bytes) -> bytes | None:
    """The small message that a collector was sent whole, as one RelayUnaryRequest; None: it was
    not. Raises MalformedError if there is anything else with it."""
    if not part.startswith(_WHOLE_TAG):
        return None
    length, begin = _varint(part, len(_WHOLE_TAG))
    if begin + length != len(part):
        raise MalformedError("whole: not alone; send a whole message in a part of its own")
    return part[begin:]


def _payload_end(request: bytes) -> int | None:
    """Where the payload ends, if the bytes are laid out as `unary_bytes` does it."""
    if len(request) < _UNARY_PREFIX.size:
        return None
    tag, length = _UNARY_PREFIX.unpack_from(request)
    if tag != _DATA_TAG or not all(byte & 0x80 for byte in length[:-1]) or length[-1] & 0x80:
        return None
    size = sum((byte & 0x7F) << (7 * place) for place, byte in enumerate(length))
    end = _UNARY_PREFIX.size + size
    return end if end <= len(request) else None


def _padded_varint(value: int) -> bytes:
    last = _LENGTH_BYTES - 1
    low = (((value >> (7 * place)) & 0x7F) | 0x80 for place in range(last))
    return bytes((*low, value >> (7 * last)))


def _check_small(request: bytes) -> None:
    """Walk over the fields: all but the payload must be small. What is no protobuf at all is left
    to the parser."""
    place = small = 0
    while place < len(request) and small <= HEADER_LIMIT:
        tag, begin = _varint(request, place)
        if tag & 7 == _LENGTH_DELIMITED:
            length, content = _varint(request, begin)
            place = content + length
        else:
            place = begin + _WIDTHS.get(tag & 7, 0) if tag & 7 else _varint(request, begin)[1]
        is_data = tag >> 3 == _DATA_FIELD and tag & 7 == _LENGTH_DELIMITED
        small += 0 if is_data else place - begin + 1
    if small > HEADER_LIMIT:
        raise MalformedError(f"more than {HEADER_LIMIT} bytes besides the payload; send less")


def _varint(data: bytes, place: int) -> tuple[int, int]:
    """The number that begins at `place`, and where it ends; beyond the end there are zeros."""
    value = shift = 0
    while place < len(data):
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80 or shift > 63:
            break
    return value, place


def _parse(message: Message, data: bytes) -> None:
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise MalformedError(f"not a {type(message).__name__}: {error}") from error
