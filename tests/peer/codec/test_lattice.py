"""The lattice codec: right within its reach whatever the key, found out beyond it."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from peer.codec.lattice import (
    BITS,
    BLOCK,
    EXPONENTS,
    FINEST,
    FULL_PRECISION,
    HEADER,
    MARGIN,
    WINDOW,
    Decoder,
    Distances,
    Encoder,
    distance,
    encoded_bytes,
    exponent_for,
    more_bits,
)
from peer.codec.rotation import GROUP, rotate, rotate_back

SEED = 0x9E3779B97F4A7C15
dtypes = st.sampled_from([torch.float32, torch.float64])
bits_of = st.sampled_from(BITS)
seeds = st.integers(0, 2**64 - 1)
numbers = st.floats(-1e6, 1e6, width=32)
vectors = st.lists(numbers, max_size=30)


def encoded(x: torch.Tensor, bits: int = 8, seed: int = SEED, far: float = 0.0) -> bytes:
    return bytes(Encoder(bits, seed, far).encode(x))


def decoded(
    data: bytes, key: torch.Tensor, bits: int = 8, seed: int = SEED
) -> tuple[bool, torch.Tensor, float]:
    out = torch.full_like(key, math.nan)
    decoder = Decoder(bits, seed, key)
    return decoder.decode(data, 0, out), out, decoder.distance


def pitch_in(data: bytes) -> float:
    return math.ldexp(1.0, HEADER.unpack_from(data)[0])


def pitch_for(far: float, largest: float) -> float:
    return math.ldexp(1.0, exponent_for(far, largest))


def in_reach(x: torch.Tensor, pitch: float, bits: int, shares: torch.Tensor) -> torch.Tensor:
    """Keys at most pitch (2^(bits-1) - 1) from x, in exact arithmetic: `shares` of it, -1 to 1."""
    reach = pitch * (2 ** (bits - 1) - 1)
    key = (x.double() + reach * shares.double()).to(x.dtype)
    off = key.double() - x.double()  # exact: both are multiples of the smaller one's last place
    return torch.where(off.abs() <= reach, key, x)


# --- right within reach ---------------------------------------------------------------------------


@settings(deadline=None)
@given(vectors, dtypes, bits_of, seeds, st.floats(0, 1e5), st.data())
def test_recovers_the_rounded_vector_whatever_the_key(
    values: list[float],
    dtype: torch.dtype,
    bits: int,
    seed: int,
    far: float,
    data: st.DataObject,
) -> None:
    x = torch.tensor(values, dtype=dtype)
    sent = encoded(x, bits, seed, far)
    assert len(sent) == encoded_bytes(len(values), bits)
    ok, rounded, _ = decoded(sent, x, bits, seed)
    assert ok
    if not values:
        return
    pitch = pitch_in(sent)
    assert (rounded.double() - x.double()).abs().max() < pitch, "the error bound"
    assert torch.equal(torch.remainder(rounded, pitch), torch.zeros_like(x)), "not on the lattice"
    shares = st.lists(st.floats(-1, 1) | st.sampled_from([-1.0, 1.0]), min_size=len(values))
    for _ in range(3):
        share = torch.tensor(data.draw(shares)[: len(values)])
        key = in_reach(x, pitch, bits, share)
        ok, out, seen = decoded(sent, key, bits, seed)
        assert ok
        assert torch.equal(out, rounded), "the result depends on the key"
        exact = float((rounded.double() - key.double()).abs().max())
        assert exact <= seen <= exact + pitch, "the distance reported"


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("elements", [0, 1, BLOCK - 1, BLOCK, 2 * BLOCK + 3])
def test_vectors_of_all_sizes(elements: int, dtype: torch.dtype, bits: int) -> None:
    random = torch.Generator().manual_seed(elements)
    x = torch.randn(elements, generator=random).to(dtype)
    key = (x + 0.01 * torch.randn(elements, generator=random)).to(dtype)
    far = distance(x, key, 1.0, is_rotated=False)
    ok, out, seen = decoded(encoded(x, bits, far=far), key, bits)
    assert ok
    pitch = pitch_for(far, 5)
    rounding = {torch.bfloat16: 2**-7}.get(dtype, 0.0)  # an element is below 5
    assert torch.allclose(out.double(), x.double(), rtol=0, atol=pitch + rounding)
    assert seen <= far + 2 * pitch + rounding


def test_blocks_may_come_one_by_one() -> None:
    x = torch.randn(3 * BLOCK + 5, generator=torch.Generator().manual_seed(1))
    encoder, decoder = Encoder(8, SEED, 0.5), Decoder(8, SEED, 2 * x, 0.5)
    out = torch.empty_like(x)
    pieces = b""
    for start in range(0, len(x), BLOCK):
        piece = bytes(encoder.encode(x[start : start + BLOCK]))
        assert decoder.decode(piece, start, out[start : start + BLOCK])
        pieces += piece
    assert pieces == encoded(x, far=0.5)
    assert torch.equal(out, decoded(pieces, x)[1])


def test_the_scale_is_that_of_the_key() -> None:
    x = torch.linspace(-1, 1, 1000)
    data = encoded(3 * x, far=0.01)
    out = torch.empty_like(x)
    assert Decoder(8, SEED, x / 2, 6.0).decode(data, 0, out)
    assert torch.equal(out, decoded(data, 3 * x)[1])
    assert not Decoder(8, SEED, x / 2, 2.0).decode(data, 0, out)


# --- unbiased -------------------------------------------------------------------------------------


def test_rounding_is_unbiased() -> None:
    """Where x is a multiple of pitch / 256, z is above it for exactly so many of 256 random bytes;
    so over many seeds the mean of the error is that of a fair coin, to five standard deviations."""
    pitch = pitch_for(1.0, 1.0)
    x = torch.arange(-2 * 256, 2 * 256, dtype=torch.float64) * (pitch / 256)
    repeats, tries = 64, 100
    many = x.repeat(repeats)
    total = torch.zeros_like(x)
    for seed in range(tries):
        ok, out, _ = decoded(encoded(many, seed=seed, far=1.0), many, seed=seed)
        assert ok
        total += ((out - many) / pitch).view(repeats, -1).sum(0)
    n = repeats * tries
    share = torch.remainder(x / pitch, 1)
    deviation = (share * (1 - share) / n).sqrt()
    assert ((total / n).abs() <= 5 * deviation).all()
    everything = float(total.sum() / n)
    assert abs(everything) <= 4 * float((deviation**2).sum().sqrt()), "a bias common to all"


def test_what_is_finer_than_the_dither_is_rounded_to_it() -> None:
    """E[z] = t / 256 with t the integer nearest to 256 x / p: the bias left is 2^-9 of a pitch."""
    pitch = pitch_for(1.0, 1.0)
    t = np.float64([0.49, 0.51, -0.49, -0.51, 3.25, 100.75])
    x = torch.from_numpy(t * pitch / 256).repeat(20_000)
    ok, out, _ = decoded(encoded(x, far=1.0), x)
    assert ok
    mean = out.view(-1, len(t)).mean(0).numpy() / pitch * 256
    share = np.rint(t) / 256 % 1
    deviation = 256 * np.sqrt(share * (1 - share) / 20_000)
    assert (np.abs(mean - np.rint(t)) <= 5 * deviation).all()


# --- found out beyond reach -----------------------------------------------------------------------


def test_every_wrong_decode_is_found_out() -> None:
    """The claim: none of 10^5 is missed. Keys are off by whole multiples of 2^bits pitches in some
    elements, so that what comes out is wrong by just that much: also where the errors cancel."""
    random = np.random.default_rng(4)
    x = torch.tensor([0.3, -1.2, 0.0, 2.5, 1e-3, -0.7])
    patterns = torch.tensor([p for p in itertools.product([-1, 0, 1], repeat=len(x)) if any(p)])
    out = torch.empty_like(x)
    tries = 0
    while tries < 100_000:
        bits = int(random.choice(BITS))
        sent = encoded(x, bits, seed=tries, far=0.1)
        off = pitch_in(sent) * 2**bits * int(random.integers(1, 2000 if bits == 8 else 8))
        keys = (x + off * patterns).flatten()
        decoder = Decoder(bits, tries, keys)
        for start in range(0, len(keys), len(x)):
            wrong = keys[start : start + len(x)]
            assert not decoder.decode(sent, start, out), f"{wrong} took {x} for {out}"
        tries += len(patterns)


@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("bits", BITS)
def test_one_wrong_element_of_a_whole_block_is_found_out(bits: int, rotated: bool) -> None:
    """Wherever it is, and however far away: also just beyond the reach."""
    random = np.random.default_rng(5)
    x = torch.randn(BLOCK, generator=torch.Generator().manual_seed(5))
    sent = Encoder(bits, SEED, 1.0, is_rotated=rotated).encode(x)
    out, right = torch.empty_like(x), torch.empty_like(x)
    assert Decoder(bits, SEED, x, is_rotated=rotated).decode(sent, 0, right)
    beyond = pitch_in(sent) * 2 ** (bits - 1) * 1.1
    places = [0, BLOCK - 1, *random.integers(BLOCK, size=30)]
    for place in places:
        key = right.clone()
        part = key.numpy()
        if rotated:
            rotate(part, out=part)
        part[place] += random.choice([-1, 1]) * beyond * 10 ** random.uniform(0, 1.5)
        if rotated:
            rotate_back(part)
        assert not Decoder(bits, SEED, key, is_rotated=rotated).decode(sent, 0, out), place


@settings(deadline=None)
@given(st.lists(numbers, min_size=1, max_size=8), st.lists(numbers, min_size=8), bits_of, dtypes)
def test_any_key_gives_the_right_result_or_none(
    values: list[float], key_values: list[float], bits: int, dtype: torch.dtype
) -> None:
    x = torch.tensor(values, dtype=dtype)
    key = torch.tensor(key_values[: len(values)], dtype=dtype)
    data = encoded(x, bits, far=1.0)
    ok, out, _ = decoded(data, key, bits)
    assert not ok or torch.equal(out, decoded(data, x, bits)[1])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 3e38, -1e30])
def test_a_key_of_no_use_is_found_out(value: float) -> None:
    x = torch.ones(5)
    key = x.clone()
    key[3] = value
    assert not decoded(encoded(x, far=0.1), key)[0]


def test_damage_is_found_out() -> None:
    x = torch.linspace(-1, 1, 50)
    data = encoded(x, far=0.1)
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= 0x10
        assert not decoded(bytes(damaged), x)[0], f"byte {position}"


@pytest.mark.parametrize("exponent", [-(2**31), -101, 86, 128, 1000, 2**31 - 1])
def test_a_pitch_out_of_range_is_refused(exponent: int) -> None:
    data = HEADER.pack(exponent, 0) + bytes(5)
    assert not decoded(data, torch.zeros(5))[0]


def test_another_length_is_an_error() -> None:
    with pytest.raises(ValueError, match="bytes are not 5"):
        decoded(encoded(torch.zeros(4)), torch.zeros(5))


# --- values at the edge ---------------------------------------------------------------------------


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 3.4e38, 1e32])
@pytest.mark.parametrize("rotated", [False, True])
def test_what_fits_no_lattice_wants_full_precision(value: float, rotated: bool) -> None:
    x = torch.zeros(BLOCK + 7)
    x[BLOCK:] = value
    decoder = Decoder(8, SEED, torch.zeros_like(x), is_rotated=rotated)
    data = Encoder(8, SEED, 1.0, is_rotated=rotated).encode(x)
    assert not decoder.decode(data, 0, torch.empty_like(x))
    assert decoder.wanted_bits == FULL_PRECISION


@pytest.mark.parametrize("far", [1e39, math.inf, math.nan])
def test_a_distance_that_is_none_wants_full_precision(far: float) -> None:
    decoder = Decoder(8, SEED, torch.zeros(3))
    assert not decoder.decode(encoded(torch.zeros(3), far=far), 0, torch.empty(3))
    assert decoder.wanted_bits == FULL_PRECISION


@pytest.mark.parametrize("largest", [4e31, 1e-38, 1e-45, 0.0])
def test_largest_and_smallest_numbers(largest: float) -> None:
    x = torch.tensor([largest, -largest, largest / 3, 0.0])
    ok, out, _ = decoded(encoded(x), x)
    assert ok
    assert float((out - x).abs().max()) <= max(2 * largest * FINEST, 2.0 ** EXPONENTS[0])


def test_no_distance_at_all() -> None:
    """A vector that does not change: the pitch falls to its least, where it stays."""
    x, far = torch.linspace(-1, 1, 1000), 1.0
    for _ in range(20):
        data = encoded(x, far=far)
        ok, out, far = decoded(data, x)
        assert ok
    assert pitch_in(data) == FINEST
    assert float((out - x).abs().max()) < FINEST


@given(st.floats(0, 1e27), st.floats(0, 1e31))
def test_pitch(far: float, largest: float) -> None:
    pitch = pitch_for(far, largest)
    assert math.frexp(pitch)[0] == 0.5, "no power of two"
    assert 127 * pitch >= MARGIN * far
    assert pitch >= max(largest * FINEST, 2.0 ** EXPONENTS[0])
    assert pitch <= 2 * max(MARGIN * far / 127, largest * FINEST, 2.0 ** EXPONENTS[0])


def test_more_bits_up_to_full_precision() -> None:
    assert [more_bits(bits) for bits in BITS] == [16, FULL_PRECISION]
    for bits in BITS:
        decoder = Decoder(bits, SEED, torch.full((3,), 1e9))
        assert not decoder.decode(encoded(torch.zeros(3), bits), 0, torch.empty(3))
        assert decoder.wanted_bits == more_bits(bits)


# --- distances ------------------------------------------------------------------------------------


def test_the_largest_of_the_last_distances_counts() -> None:
    distances = Distances()
    assert distances.predict() is None
    for far in [9.0, *[1.0] * (WINDOW - 1)]:
        distances.saw(far)
    assert distances.predict() == 9.0
    distances.saw(2.0)
    assert distances.predict() == 2.0
    distances.saw(math.nan)
    distances.saw(math.inf)
    assert distances.predict() == 2.0


def test_distances_are_those_of_one_model() -> None:
    distances = Distances()
    distances.saw(6.0, count=3)
    assert distances.predict(1) == 2.0
    assert distances.predict(5) == 10.0


# --- rotation -------------------------------------------------------------------------------------


@pytest.mark.parametrize("elements", [0, 1, 2, 5, 1000, BLOCK, BLOCK + 3001])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rotated_vectors_come_back(elements: int, dtype: torch.dtype) -> None:
    random = torch.Generator().manual_seed(7)
    x = torch.randn(elements, generator=random, dtype=dtype)
    key = x.clone()
    key[: elements // 100] += 1.0  # a few elements are far away
    far = distance(x, key, 1.0, is_rotated=True)
    data = Encoder(8, SEED, far, is_rotated=True).encode(x)
    out = torch.empty_like(x)
    decoder = Decoder(8, SEED, key, is_rotated=True)
    assert decoder.decode(data, 0, out)
    if elements:
        pitch = pitch_for(far, 5)
        error = (out - x).double()
        assert float((error**2).mean().sqrt()) <= pitch
        assert decoder.distance == pytest.approx(far, abs=2 * pitch)
    if elements == BLOCK:
        plain = distance(x, key, 1.0, is_rotated=False)
        assert far < plain / 2, "rotation spreads what a few elements are off by"


@settings(deadline=None)
@given(st.integers(1, 3 * GROUP), dtypes, bits_of, seeds, st.floats(0.001, 1e3))
def test_rotated_results_do_not_depend_on_the_key(
    elements: int, dtype: torch.dtype, bits: int, seed: int, far: float
) -> None:
    """As without rotation, with distances as they are after it; and a rotation keeps lengths, so
    that the error of n elements is below sqrt(n) pitches."""
    random = torch.Generator().manual_seed(seed % 2**63)
    x = torch.randn(elements, generator=random, dtype=dtype)
    data = Encoder(bits, seed, far, is_rotated=True).encode(x)
    pitch = pitch_in(data)
    reach = 0.99 * pitch * (2 ** (bits - 1) - 1)  # what float32 loses in rotating is less
    first = torch.empty_like(x)
    assert Decoder(bits, seed, x, is_rotated=True).decode(data, 0, first)
    assert float((first - x).double().norm()) < math.sqrt(elements) * pitch + 1e-4
    for _ in range(3):
        off = (2 * torch.rand(elements, generator=random, dtype=dtype) - 1) * reach
        rotate_back(off.numpy())
        out = torch.empty_like(x)
        assert Decoder(bits, seed, x + off, is_rotated=True).decode(data, 0, out)
        assert torch.equal(out, first)


def test_rotated_rounding_is_unbiased() -> None:
    x = torch.randn(GROUP, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    tries, total = 400, torch.zeros_like(x)
    for seed in range(tries):
        data = Encoder(8, seed, 1.0, is_rotated=True).encode(x)
        out = torch.empty_like(x)
        assert Decoder(8, seed, x, is_rotated=True).decode(data, 0, out)
        total += (out - x) / pitch_in(data)
    deviation = math.sqrt(1 / 4 / tries)  # of a coin at most; and so of what rotates back
    assert float((total / tries).abs().max()) <= 5 * deviation + 2**-9 * math.sqrt(GROUP)
