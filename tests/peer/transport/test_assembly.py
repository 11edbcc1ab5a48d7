"""Payloads are put together from chunks of any size, and checked on the way."""

import itertools
import weakref
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from peer.algorithms.core import Verdict
from peer.codec import Format, encode, roundtrip
from peer.transport.assembly import Assembly, PlainAssembly
from peer.transport.wire import MalformedError


def feed(assembly: Assembly, payload: bytes, cuts: list[int]) -> Verdict:
    """Add the payload cut at these places, then the trailer."""
    edges = [0, *sorted(cuts), len(payload)]
    for start, stop in itertools.pairwise(edges):
        verdict = assembly.add(start, payload[start:stop])
        if verdict is not Verdict.ACCEPTED:
            return verdict
    return assembly.finish(xxh3_64_intdigest(payload))


@given(
    st.lists(st.floats(-6e4, 6e4), min_size=2, max_size=30).filter(lambda v: len(v) % 2 == 0),
    st.sampled_from(Format),
    st.sampled_from([torch.float64, torch.float32]),
    st.data(),
)
def test_chunks_may_end_anywhere(
    values: list[float], fmt: Format, dtype: torch.dtype, data: st.DataObject
) -> None:
    vector = torch.tensor(values, dtype=dtype)
    payload = bytes(encode(vector, fmt))
    cuts = data.draw(st.lists(st.integers(0, len(payload)), max_size=6))
    assembly = PlainAssembly(torch.full_like(vector, torch.nan), 2, fmt)
    assert feed(assembly, payload, cuts) is Verdict.ACCEPTED
    first, second = assembly.take()
    assert first.shape == second.shape == (len(values) // 2,)
    assert torch.equal(torch.cat([first, second]), roundtrip(vector, fmt))


@given(st.integers(0, 79), st.integers(1, 255))
def test_damage_is_found(position: int, flip: int) -> None:
    payload = bytearray(encode(torch.ones(20), Format.FLOAT32))
    checksum = xxh3_64_intdigest(payload)
    payload[position] ^= flip
    assembly = PlainAssembly(torch.zeros(20), 1, Format.FLOAT32)
    verdict = assembly.add(0, bytes(payload))
    if verdict is Verdict.ACCEPTED:
        verdict = assembly.finish(checksum)
    assert verdict in (Verdict.CHECKSUM, Verdict.NOT_FINITE)


@pytest.mark.parametrize("bytes_missing", [1, 4, 80])
def test_too_short(bytes_missing: int) -> None:
    payload = bytes(80 - bytes_missing)
    assembly = PlainAssembly(torch.zeros(20), 1, Format.FLOAT32)
    assert assembly.add(0, payload) is Verdict.ACCEPTED
    assert assembly.finish(xxh3_64_intdigest(payload)) is Verdict.BAD_LENGTH


@pytest.mark.parametrize("first", [0, 4, 79, 80])
def test_too_long_is_found_before_it_is_written(first: int) -> None:
    buffer = torch.zeros(40)
    assembly = PlainAssembly(buffer[:20], 1, Format.FLOAT32)
    assert assembly.add(0, b"\x01" * first) is Verdict.ACCEPTED
    assert assembly.add(first, b"\x01" * (81 - first)) is Verdict.BAD_LENGTH
    assert not buffer[20:].any()


@pytest.mark.parametrize("offset", [0, 4, 12, 2**64 - 8])
def test_gaps_and_overlaps_are_malformed(offset: int) -> None:
    assembly = PlainAssembly(torch.zeros(20), 1, Format.FLOAT32)
    assembly.add(0, bytes(8))
    with pytest.raises(MalformedError, match="expected 8"):
        assembly.add(offset, bytes(8))


def test_what_is_not_finite_ends_the_message_at_once() -> None:
    vector = torch.zeros(20)
    vector[3] = torch.inf
    assembly = PlainAssembly(torch.zeros(20), 1, Format.FLOAT32)
    assert assembly.add(0, encode(vector[:10], Format.FLOAT32)) is Verdict.NOT_FINITE


def test_a_message_of_no_elements_is_whole() -> None:
    assembly = PlainAssembly(torch.zeros(0), 1, Format.FLOAT32)
    assert assembly.finish(xxh3_64_intdigest(b"")) is Verdict.ACCEPTED
    assert [vector.shape for vector in assembly.take()] == [(0,)]


@pytest.mark.parametrize("way", [Assembly.take, Assembly.release])
def test_lets_its_buffer_go(way: Any) -> None:
    buffer = torch.zeros(4)
    memory = weakref.ref(buffer)
    assembly = PlainAssembly(buffer, 1, Format.FLOAT32)
    del buffer
    way(assembly)
    assert memory() is None
