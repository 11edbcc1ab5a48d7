"""Headers survive the wire, maps are complete, and hand-made bytes are plain protobuf."""

import math
import struct
from dataclasses import replace
from typing import Any

import pytest
import torch
from google.protobuf.message import DecodeError, Message
from hypothesis import given
from hypothesis import strategies as st

from peer.algorithms.core import Epoch, Head, Kind, Mean, Verdict
from peer.codec import Format
from peer.transport import wire
from peer.transport.contract import Contract, Span
from peer.transport.wire import Chunk, MalformedError
from relayswarm.peer.v1 import peer_pb2 as pb

CONTRACT = Contract("run", 1 << 63, 10, torch.float32, trees=2, sections=2)
HEAD = Head("peer-1", 1, Epoch(1, 2, 3), 4, Kind.RELAY, count=2)

u32, u64 = st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1)
heads = st.builds(
    Head,
    sender=st.text(min_size=1, max_size=20),
    incarnation=u64,
    epoch=st.builds(Epoch, u64, u64, u64),
    step=u64,
    kind=st.sampled_from([kind for kind in Kind if kind is not Kind.METRIC]),
    round=u32,
    tree=u32,
    count=u32,
    weight=st.floats(allow_nan=False, allow_infinity=False),
    lost=st.booleans(),
    exchange=u64,
    mean=st.none() | st.builds(Mean, st.builds(Epoch, u64, u64, u64)),
)


@given(heads, st.lists(st.text(max_size=20), max_size=3), st.sampled_from(Format))
def test_names_of_metrics_travel_with_their_sections(
    head: Head, names: list[str], fmt: Format
) -> None:
    head = replace(head, kind=Kind.METRIC, tree=0, lost=False, metrics=tuple(names))
    contract = Contract("run", 7, 10, torch.float32, wire_format=fmt)
    span = contract.span(Kind.METRIC, 0)
    assert span is not None
    message = wire.header(head, contract, [span] * len(names))
    assert {section.role for section in message.sections} <= {pb.SECTION_ROLE_METRIC}
    envelope = wire.envelope(message)
    assert envelope.head == head
    assert envelope.coding is Format.FLOAT64  # whatever models travel as
    assert envelope.payload_bytes == 24 * len(names)


@pytest.mark.parametrize(
    ("names", "changes", "verdict"),
    [
        (("loss", "accuracy"), {}, Verdict.ACCEPTED),
        (tuple(f"metric {k}" for k in range(32)), {}, Verdict.ACCEPTED),
        (tuple(f"metric {k}" for k in range(33)), {}, Verdict.BAD_METRIC),
        (("loss", "loss"), {}, Verdict.BAD_METRIC),
        (("",), {}, Verdict.BAD_METRIC),
        (("x" * 64,), {}, Verdict.ACCEPTED),
        (("x" * 65,), {}, Verdict.BAD_METRIC),
        ((), {}, Verdict.BAD_LENGTH),
        (("loss",), {"payload_bytes": 16}, Verdict.BAD_LENGTH),
        (("loss",), {"tree": 1}, Verdict.NOT_A_NEIGHBOUR),
        (("loss",), {"codec": pb.Codec(format=pb.FORMAT_F32)}, Verdict.DECODE_FAILED),
        (("loss",), {"model_fingerprint": 1}, Verdict.BAD_LENGTH),
    ],
)
def test_sums_of_metrics_are_held_against_the_contract(
    names: tuple[str, ...], changes: dict[str, Any], verdict: Verdict
) -> None:
    head = replace(HEAD, kind=Kind.METRIC, metrics=names)
    message = wire.header(head, CONTRACT, [Span(0, 3)] * len(names))
    message.MergeFrom(pb.MessageHeader(**changes))
    assert wire.check(wire.envelope(message), CONTRACT) is verdict


@given(heads, st.sampled_from(Format), st.integers(0, 2), u32)
def test_a_head_comes_back_from_its_header(
    head: Head, fmt: Format, sections: int, attempt: int
) -> None:
    contract = Contract("run", 7, 10, torch.float32, wire_format=fmt)
    spans = [Span(2, 7)] * sections
    message = pb.MessageHeader.FromString(
        wire.header(head, contract, spans, attempt).SerializeToString()
    )
    envelope = wire.envelope(message)
    assert envelope.head == head
    assert (envelope.run_id, envelope.fingerprint, envelope.coding) == ("run", 7, fmt)
    assert envelope.sections == tuple(spans)
    assert envelope.payload_bytes == 5 * fmt.itemsize * sections
    assert message.attempt == attempt


@pytest.mark.parametrize("weights", [{}, {"a": 1.5, "b": 0.0}])
def test_of_a_mean_it_travels_whose_models_are_in_it(weights: dict[str, float]) -> None:
    mean = Mean(Epoch(1, 2, 3), ("a", "b"), weights)
    message = wire.header(replace(HEAD, mean=mean), CONTRACT, [Span(0, 5)])
    read = wire.envelope(pb.MessageHeader.FromString(message.SerializeToString())).head.mean
    assert read is not None
    assert (read.epoch, read.members, read.weights) == (mean.epoch, mean.members, mean.weights)


@pytest.mark.parametrize("weights", [[1.0], [1.0, math.nan], [1.0, 2.0, 3.0]])
def test_of_a_mean_all_models_weigh_something_or_none(weights: list[float]) -> None:
    message = wire.header(HEAD, CONTRACT, [Span(0, 5)])
    message.mean.CopyFrom(pb.Mean(epoch=pb.Epoch(term=1), members=["a", "b"], weights=weights))
    with pytest.raises(MalformedError, match=r"mean\.weights"):
        wire.envelope(message)


def test_every_kind_verdict_and_format_has_its_number() -> None:
    lattice = {pb.FORMAT_LATTICE}  # not spoken yet
    for ours, theirs, extra in (
        (wire.KINDS, pb.Kind, set()),
        (wire.VERDICTS, pb.Verdict, set()),
        (wire.FORMATS, pb.Format, lattice),
    ):
        numbers = set(theirs.values()) - {0} - extra
        assert set(ours.values()) == numbers
        assert len(ours) == len(numbers)
    assert set(wire.KINDS) == set(Kind)
    assert set(wire.VERDICTS) == set(Verdict)
    assert set(wire.FORMATS) == set(Format)
    for verdict, number in wire.VERDICTS.items():
        assert wire.verdict_of(pb.RelayResponse(verdict=number)) is verdict
    assert wire.verdict_of(pb.RelayResponse()) is None


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"kind": 0}, "kind"),
        ({"kind": 77}, "kind"),
        ({"sender": ""}, "sender"),
        ({"weight": math.nan}, "weight"),
        ({"weight": math.inf}, "weight"),
    ],
)
def test_a_senseless_header_is_malformed(change: dict[str, Any], names: str) -> None:
    message = wire.header(HEAD, CONTRACT, [Span(0, 5)])
    for field, value in change.items():
        setattr(message, field, value)
    with pytest.raises(MalformedError, match=names):
        wire.envelope(message)


@pytest.mark.parametrize("field", ["epoch", "codec"])
def test_a_header_without_epoch_or_codec_is_malformed(field: str) -> None:
    message = wire.header(HEAD, CONTRACT, [Span(0, 5)])
    message.ClearField(field)
    with pytest.raises(MalformedError, match=field):
        wire.envelope(message)


@pytest.mark.parametrize("role", [0, pb.SECTION_ROLE_CORRECTION, pb.SECTION_ROLE_METRIC, 77])
def test_a_section_of_another_role_is_malformed(role: Any) -> None:
    message = wire.header(HEAD, CONTRACT, [Span(0, 5)])
    message.sections[0].role = role
    with pytest.raises(MalformedError, match="role"):
        wire.envelope(message)


def test_sections_after_the_first_are_corrections() -> None:
    roles = [s.role for s in wire.header(HEAD, CONTRACT, [Span(0, 5)] * 2).sections]
    assert roles == [pb.SECTION_ROLE_MODEL, pb.SECTION_ROLE_CORRECTION]


@pytest.mark.parametrize(("elements", "half"), [(10, 5), (11, 6), (1, 1)])
def test_two_trees_carry_the_halves_and_other_kinds_the_whole(elements: int, half: int) -> None:
    contract = Contract("run", 7, elements, torch.float32, trees=2)
    assert contract.span(Kind.RELAY, 0) == Span(0, half)
    assert contract.span(Kind.RELAY, 1) == Span(half, elements)
    assert contract.span(Kind.RELAY, 2) is None
    assert contract.span(Kind.GOSSIP, 0) == Span(0, elements)
    assert contract.span(Kind.GOSSIP, 1) is None
    assert Contract("run", 7, elements, torch.float32).span(Kind.RELAY, 0) == Span(0, elements)
    assert Contract("run", 7, elements, torch.float32).span(Kind.RELAY, 1) is None


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({}, Verdict.ACCEPTED),
        ({"protocol_version": 0}, Verdict.VERSION),
        ({"protocol_version": 2}, Verdict.VERSION),
        ({"run_id": "walk"}, Verdict.FOREIGN_RUN),
        ({"tree": 2}, Verdict.NOT_A_NEIGHBOUR),
        ({"tree": 1}, Verdict.BAD_LENGTH),  # the other half
        ({"model_fingerprint": 1}, Verdict.BAD_LENGTH),
        ({"payload_bytes": 39}, Verdict.BAD_LENGTH),
        ({"payload_bytes": 2**63}, Verdict.BAD_LENGTH),
        ({"lost": True, "payload_bytes": 0}, Verdict.ACCEPTED),
        ({"lost": True, "run_id": "walk"}, Verdict.FOREIGN_RUN),
    ],
)
def test_a_header_is_held_against_the_contract(change: dict[str, Any], verdict: Verdict) -> None:
    message = wire.header(HEAD, CONTRACT, [Span(0, 5)] * 2)
    for field, value in change.items():
        setattr(message, field, value)
    assert wire.check(wire.envelope(message), CONTRACT) is verdict


@pytest.mark.parametrize(
    ("spans", "verdict"),
    [
        ([Span(0, 5)] * 2, Verdict.ACCEPTED),
        ([Span(0, 5)], Verdict.BAD_LENGTH),  # its algorithm counts on the correction
        ([Span(0, 5)] * 3, Verdict.BAD_LENGTH),
        ([], Verdict.BAD_LENGTH),
        ([Span(1, 6)], Verdict.BAD_LENGTH),
        ([Span(0, 10)], Verdict.BAD_LENGTH),
        ([Span(0, 5), Span(0, 4)], Verdict.BAD_LENGTH),
        ([Span(0, 5), Span(1, 6)], Verdict.BAD_LENGTH),  # as long, but elsewhere
    ],
)
def test_sections_must_cover_the_span(spans: list[Span], verdict: Verdict) -> None:
    envelope = wire.envelope(wire.header(HEAD, CONTRACT, spans))
    assert wire.check(envelope, CONTRACT) is verdict


def test_a_format_that_is_not_accepted_cannot_be_decoded() -> None:
    strict = Contract(
        "run", 1 << 63, 5, torch.float32, accepted_formats=frozenset({Format.FLOAT16})
    )
    message = wire.header(HEAD, strict, [Span(0, 5)])
    assert wire.check(wire.envelope(message), strict) is Verdict.DECODE_FAILED
    message.codec.format = pb.FORMAT_LATTICE
    assert wire.check(wire.envelope(message), strict) is Verdict.DECODE_FAILED


# --- framing ------------------------------------------------------------------------------------


@given(u64, st.binary(max_size=300))
def test_hand_made_chunks_are_what_protobuf_reads(offset: int, data: bytes) -> None:
    chunk = wire.chunk_bytes(offset, data)
    assert chunk == wire.chunk_bytes(offset, memoryview(data))
    assert len(chunk) == 16 + len(data)
    for message in (pb.RelayRequest.FromString(chunk), pb.ReadModelResponse.FromString(chunk)):
        assert (message.offset, message.data) == (offset, data)
        assert not message.HasField("header")
        assert not message.HasField("trailer")


@pytest.mark.parametrize("size", [0, 1, 127, 128, 1 << 14, (1 << 20) - 1, 1 << 20, 1 << 21])
def test_lengths_of_all_sizes_are_what_protobuf_reads(size: int) -> None:
    data = bytes(size)
    assert pb.RelayRequest.FromString(wire.chunk_bytes(3, data)).data == data


@given(u64, st.binary(min_size=1, max_size=300))
def test_chunks_are_written_in_place(offset: int, data: bytes) -> None:
    chunk = wire.OpenChunk(offset, len(data))
    address = torch.frombuffer(chunk.data, dtype=torch.uint8).data_ptr()
    chunk.data[:] = data
    request = chunk.close()
    assert request == wire.chunk_bytes(offset, data)
    assert torch.frombuffer(request, dtype=torch.uint8, offset=16).data_ptr() == address
    assert address % 16 == 0


@given(u64, st.binary(max_size=300))
def test_reads_chunks_of_any_encoder(offset: int, data: bytes) -> None:
    ours = wire.chunk_bytes(offset, data)
    theirs = pb.RelayRequest(offset=offset, data=data).SerializeToString()
    for request in (ours, theirs):
        chunk = wire.parse_part(request, pb.RelayRequest)
        assert isinstance(chunk, Chunk)
        assert (chunk.offset, bytes(chunk.data)) == (offset, data)
        chunk = wire.parse_response(request)
        assert isinstance(chunk, Chunk)
        assert (chunk.offset, bytes(chunk.data)) == (offset, data)


def test_our_own_chunks_are_read_in_place() -> None:
    request = wire.chunk_bytes(0, bytes(100))
    chunk = wire.parse_part(request, pb.RelayRequest)
    assert isinstance(chunk, Chunk)
    assert chunk.data.obj is request


@given(st.binary(max_size=60))
def test_reads_as_protobuf_does_or_refuses(request: bytes) -> None:
    """Whatever the bytes: never another content than the generated class sees, never a crash."""
    try:
        expected = pb.RelayRequest.FromString(request)
    except DecodeError:
        expected = None
    try:
        part: Message | Chunk = wire.parse_part(request, pb.RelayRequest)
    except MalformedError:
        assert expected is None or expected.HasField("header") + expected.HasField("trailer") > 0
        return
    assert expected is not None
    if isinstance(part, Chunk):
        assert (part.offset, bytes(part.data)) == (expected.offset, expected.data)
    else:
        assert part == expected


def test_a_request_holds_one_thing() -> None:
    head = wire.header(HEAD, CONTRACT)
    for request in (
        pb.RelayRequest(header=head, data=b"x"),
        pb.RelayRequest(header=head, trailer=pb.Trailer()),
        pb.RelayRequest(trailer=pb.Trailer(), data=b"x"),
    ):
        with pytest.raises(MalformedError, match="send them apart"):
            wire.parse_part(request.SerializeToString(), pb.RelayRequest)


@given(st.binary(max_size=300), u32)
def test_whole_messages_are_read_from_any_encoder(data: bytes, xxh3: int) -> None:
    head = wire.header(HEAD, CONTRACT)
    foreign = pb.RelayUnaryRequest(header=head, trailer=pb.Trailer(xxh3=xxh3), data=data)
    ours = wire.unary_bytes(head, xxh3, data)
    assert pb.RelayUnaryRequest.FromString(ours) == foreign
    for request in (ours, foreign.SerializeToString()):
        message, payload = wire.parse_unary(request)
        assert (message.header, message.trailer.xxh3) == (head, xxh3)
        assert bytes(payload) == data


def test_of_a_repeated_payload_the_last_counts() -> None:
    """As protobuf has it for any field that comes twice."""
    head = wire.header(HEAD, CONTRACT)
    request = wire.unary_bytes(head, 0, b"first") + b"\x82\x01\x04last"
    assert bytes(wire.parse_unary(request)[1]) == b"last"


@given(st.binary(max_size=60) | st.binary(max_size=60).map(lambda data: b"\x82\x01" + data))
def test_garbage_is_no_whole_message(request: bytes) -> None:
    try:
        message, payload = wire.parse_unary(request)
    except MalformedError:
        return
    expected = pb.RelayUnaryRequest.FromString(request)
    assert (message.header, bytes(payload)) == (expected.header, expected.data)


def test_the_prefix_is_sixteen_bytes_long() -> None:
    prefix = wire.chunk_bytes(1, b"")
    assert prefix == b"\x09" + struct.pack("<Q", 1) + b"\x82\x01" + b"\x80\x80\x80\x80\x00"
