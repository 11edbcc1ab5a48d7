"""Wire formats: exact where they lose nothing, IEEE 754's nearest-even where they do."""

import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from peer.codec import Format, copy, decode, default_format, encode, is_finite, roundtrip
from relayswarm.config import TransportConfig

DTYPES = {
    Format.FLOAT64: torch.float64,
    Format.FLOAT32: torch.float32,
    Format.BFLOAT16: torch.bfloat16,
    Format.FLOAT16: torch.float16,
}
formats = st.sampled_from(list(Format))
model_dtypes = st.sampled_from([torch.float64, torch.float32])
numbers = st.floats(min_value=-6e4, max_value=6e4)  # what float16 can hold
any_numbers = st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=40)


def through_network(vector: torch.Tensor, fmt: Format, chunk: int) -> torch.Tensor:
    """Encode and decode in chunks of so many elements."""
    out = torch.full_like(vector, torch.nan)
    for start in range(0, vector.numel(), chunk):
        stop = min(start + chunk, vector.numel())
        data = bytes(encode(vector[start:stop], fmt))
        decode(data, fmt, out[start:stop])
    return out


def test_names_are_those_of_the_run_config() -> None:
    for fmt in Format:
        assert TransportConfig(wire_format=fmt.value).wire_format == fmt.value
        assert (fmt.dtype, fmt.itemsize) == (DTYPES[fmt], DTYPES[fmt].itemsize)


@given(st.lists(numbers, max_size=40), formats, model_dtypes, st.integers(1, 17))
def test_roundtrip_is_the_network_path_bit_for_bit(
    values: list[float], fmt: Format, dtype: torch.dtype, chunk: int
) -> None:
    vector = torch.tensor(values, dtype=dtype)
    network = through_network(vector, fmt, chunk)
    simulator = roundtrip(vector, fmt)
    assert torch.equal(network.view(torch.uint8), simulator.view(torch.uint8))


@given(any_numbers, st.integers(1, 17))
def test_the_models_own_format_loses_nothing(values: list[float], chunk: int) -> None:
    vector = torch.tensor(values, dtype=torch.float64)
    assert torch.equal(through_network(vector, Format.FLOAT64, chunk), vector)
    single = vector.to(torch.float32)
    single = single[torch.isfinite(single)]
    for fmt in (Format.FLOAT32, Format.FLOAT64):
        assert torch.equal(through_network(single, fmt, chunk), single)
        assert roundtrip(single, fmt) is single


def test_bytes_are_little_endian() -> None:
    vector = torch.tensor([1.5, -2.0], dtype=torch.float64)
    assert bytes(encode(vector, Format.FLOAT64)) == struct.pack("<2d", 1.5, -2.0)
    assert bytes(encode(vector, Format.FLOAT32)) == struct.pack("<2f", 1.5, -2.0)
    assert bytes(encode(vector, Format.FLOAT16)) == struct.pack("<2e", 1.5, -2.0)
    upper_halves = b"".join(struct.pack("<f", value)[2:] for value in (1.5, -2.0))
    assert bytes(encode(vector, Format.BFLOAT16)) == upper_halves


def test_ties_round_to_even() -> None:
    one_and_a_half_ulp = torch.tensor([1 + 2**-8, 1 + 3 * 2**-8], dtype=torch.float32)
    assert roundtrip(one_and_a_half_ulp, Format.BFLOAT16).tolist() == [1.0, 1 + 2**-6]
    tie = torch.tensor([1 + 2**-11, 1 + 3 * 2**-11], dtype=torch.float32)
    assert roundtrip(tie, Format.FLOAT16).tolist() == [1.0, 1 + 2**-9]


def test_what_overflows_on_the_wire_is_not_finite_for_the_receiver() -> None:
    vector = torch.tensor([1.0, 7e4], dtype=torch.float32)
    assert is_finite(vector)
    assert not is_finite(through_network(vector, Format.FLOAT16, 8))
    assert not is_finite(roundtrip(vector, Format.FLOAT16))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@given(position=st.integers(0, 99))
def test_finds_what_is_not_finite(bad: float, position: int) -> None:
    vector = torch.ones(100)
    vector[position] = bad
    assert not is_finite(vector)


def test_opposite_infinities_do_not_cancel_and_large_sums_are_finite() -> None:
    assert not is_finite(torch.tensor([torch.inf, -torch.inf]))
    assert is_finite(torch.full((100,), 3e38))
    assert is_finite(torch.empty(0))


def test_encoding_without_conversion_copies_nothing() -> None:
    vector = torch.zeros(4)
    view = encode(vector, Format.FLOAT32)
    vector[0] = 1.0
    assert bytes(view[:4]) == struct.pack("<f", 1.0)


def test_encodes_slices_and_strided_vectors() -> None:
    vector = torch.arange(8, dtype=torch.float32)
    assert bytes(encode(vector[2:4], Format.FLOAT32)) == struct.pack("<2f", 2, 3)
    assert bytes(encode(vector[::4], Format.FLOAT32)) == struct.pack("<2f", 0, 4)


@pytest.mark.parametrize("fmt", list(Format))
def test_refuses_bytes_of_another_length(fmt: Format) -> None:
    out = torch.zeros(3, dtype=torch.float32)
    with pytest.raises(ValueError, match="3 elements"):
        decode(bytes(3 * fmt.itemsize - 1), fmt, out)
    with pytest.raises(ValueError, match="3 elements"):
        decode(bytes(4 * fmt.itemsize), fmt, out)


@pytest.mark.parametrize("fmt", list(Format))
@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_says_whether_all_are_finite(fmt: Format, bad: float, dtype: torch.dtype) -> None:
    vector = torch.tensor([1.0, -2.0, 0.5], dtype=dtype)
    assert decode(encode(vector, fmt), fmt, torch.zeros(3, dtype=dtype))
    vector[1] = bad
    assert not decode(encode(vector, fmt), fmt, torch.zeros(3, dtype=dtype))
    assert decode(b"", fmt, torch.zeros(0, dtype=dtype))


def test_what_is_finite_on_the_wire_may_not_be_so_in_the_model() -> None:
    vector = torch.tensor([1.0, 1e300], dtype=torch.float64)
    assert not decode(encode(vector, Format.FLOAT64), Format.FLOAT64, torch.zeros(2))


@pytest.mark.parametrize("elements", [0, 3, 100_003])
@pytest.mark.parametrize(
    "dtypes",
    [
        ("float32", "float32"),
        ("bfloat16", "bfloat16"),
        ("float64", "float64"),
        ("float32", "float64"),
    ],
)
def test_copies_as_torch_does(elements: int, dtypes: tuple[str, str]) -> None:
    """Bit for bit, of what gradients are recorded for as well, and no neighbour is written to."""
    into, of = (getattr(torch, name) for name in dtypes)
    source = torch.randn(elements + 2).to(of).requires_grad_()
    memory = torch.full((elements + 2,), 7.0, dtype=into)
    expected = memory.clone()
    with torch.no_grad():
        expected[1:-1].copy_(source[1:-1])
        copy(memory[1:-1], source[1:-1])
    assert torch.equal(memory, expected)


@pytest.mark.parametrize("fmt", list(Format))
@pytest.mark.parametrize("shift", range(9))
def test_reads_from_wherever_the_bytes_lie(fmt: Format, shift: int) -> None:
    """A foreign encoder's payload may begin anywhere in a request, which is not to be changed."""
    data = bytes(encode(torch.tensor([1.0, -2.0, 0.5]), fmt))
    request = bytes(shift) + data
    out = torch.zeros(3)
    decode(memoryview(request)[shift:], fmt, out)
    assert out.tolist() == [1.0, -2.0, 0.5]
    assert request == bytes(shift) + data


def test_default_format_is_the_models_precision() -> None:
    assert default_format(torch.float64) is Format.FLOAT64
    assert default_format(torch.float32) is Format.FLOAT32
    assert default_format(torch.bfloat16) is Format.FLOAT32
