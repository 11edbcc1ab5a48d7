"""Q of pairwise exchanges: what a partner decodes is what the sender averages with."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from peer.algorithms.core import Epoch, Head, Kind
from peer.codec.edges import Lattice, LatticeSetting
from peer.codec.lattice import BITS, BLOCK
from peer.codec.quantizer import Quantizer

HEAD = Head("peer-0", 1, Epoch(), 7, Kind.OFFER)
SIZES = (1, 9, BLOCK + 5)


def vector(seed: int, elements: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(elements, generator=generator, dtype=dtype)


def quantized(x: Tensor, distance: float, *, is_rotated: bool = False) -> tuple[Tensor, Lattice]:
    quantizer = Quantizer(LatticeSetting(8, is_rotated), seed=3)
    quantizer.saw(distance)
    q = torch.empty_like(x)
    lattice = quantizer.round(x, q, "peer-1", HEAD)
    assert lattice is not None
    return q, lattice


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("is_rotated", [False, True], ids=["plain", "rotated"])
@given(
    seed=st.integers(0, 2**32),
    elements=st.sampled_from(SIZES),
    scale=st.integers(-20, 20),
    distance=st.floats(1e-9, 1.0),
    bits=st.sampled_from(BITS),
)
def test_a_partner_decodes_exactly_what_was_rounded(
    dtype: torch.dtype, is_rotated: bool, seed: int, elements: int, scale: int, distance: float,
    bits: int,
) -> None:  # fmt: skip
    """Down to pitches that the vector's own size sets, and with 8 bits as with 16."""
    x = vector(seed, elements, dtype) * 2.0**scale
    distance *= 2.0**scale
    q, lattice = quantized(x, distance, is_rotated=is_rotated)
    key = q if is_rotated else q + distance * (2 * torch.rand(elements, dtype=dtype) - 1)
    encoder = Lattice(bits, lattice.seed, is_rotated, lattice.expected, is_rounded=True).encoder(0)
    out = torch.empty_like(x)
    decoder = Lattice(bits, lattice.seed, is_rotated).decoder(0, key, 1.0)
    assert decoder.decode(encoder.encode(q), 0, out)
    assert torch.equal(out, q)


def test_as_long_as_nothing_was_seen_it_is_the_identity() -> None:
    quantizer, x = Quantizer(LatticeSetting(8), seed=3), vector(1, 9)
    quantizer.saw(0.0)
    q = torch.empty_like(x)
    assert quantizer.round(x, q, "peer-1", HEAD) is None
    assert torch.equal(q, x)


def test_rounding_is_unbiased_and_its_place_alone_decides_it() -> None:
    quantizer, x = Quantizer(LatticeSetting(8), seed=3), torch.full((BLOCK,), 0.3)
    quantizer.saw(1.0)
    pitch, q, again = 2.0**-6, torch.empty_like(x), torch.empty_like(x)
    quantizer.round(x, q, "peer-1", HEAD)
    quantizer.round(x, again, "peer-1", HEAD)
    assert torch.equal(q, again)
    assert set(q.tolist()) == {19 * pitch, 20 * pitch}
    assert abs(float(q.double().mean()) - 0.3) < 5 * pitch / 2 / BLOCK**0.5 + pitch / 512
    quantizer.round(x, again, "peer-2", HEAD)
    assert not torch.equal(q, again)


def test_a_block_that_fits_no_lattice_stays_and_asks_for_full_precision() -> None:
    x = vector(2, BLOCK + 5)
    x[3] = 1e38
    q, lattice = quantized(x, 1.0)
    assert torch.equal(q[:BLOCK], x[:BLOCK])
    assert not torch.equal(q[BLOCK:], x[BLOCK:])
    decoder, out = lattice.decoder(0, q, 1.0), torch.empty_like(x)
    assert not decoder.decode(lattice.encoder(0).encode(q), 0, out)
    assert decoder.wanted_bits == 0
