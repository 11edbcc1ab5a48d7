"""The lattice codec: 8 (or 16) bits an element, decoded next to a vector that the receiver has.

The scheme of Davies et al. 2021 as the appendix of SwarmSGD's later version uses it (Corollary
2.1), in its practical form. With x the sender's vector, v the receiver's key, p the pitch:

    encode   z = x / p, rounded at random so that E[z] = x / p and |z - x / p| < 1;
             z modulo 2^bits is sent
    decode   z is the integer congruent to what came in (v / p - 2^(bits-1), v / p + 2^(bits-1)];
             the result is z p

That is right whenever max_k |x_k - v_k| <= p (2^(bits-1) - 1); then the result does not depend on
v, and no element of it is further than p from x. A key that is further away gives other integers:
they are found out by a checksum of all z, so that a wrong decode is refused and never averaged.

How to use it. A vector goes block by block, each of BLOCK elements but for the last:

    encoder = Encoder(bits, seed, distance)      distance: largest |x_k - v_k| to be expected
    data = encoder.encode(x[a:b])                a and b at edges of blocks, or the vector's end
    decoder = Decoder(bits, seed, key, scale)    v = key * scale
    ok = decoder.decode(data, a, out[a:b])       False: the key is too far away (or data damaged)
    decoder.distance                             largest |x_k - v_k| so far, for the next message

Where that returns False, ask for `decoder.wanted_bits`; FULL_PRECISION means that no lattice will
do. From the distances that acknowledgements report, `Distances` predicts the next one.
`encoded_bytes` is the length of an encoded vector.

A block is a header (`<iQ`: exponent e of the pitch p = 2^e, checksum) and its integers modulo
2^bits, little endian. The checksum is XXH3 (64 bits, seeded with `seed` + e modulo 2^64) of all z
of the block as little-endian int32. Wrong integers are other bytes, whatever multiples of 2^bits
they are off by, and even where these add up to nothing: they go unnoticed with probability 2^-64,
as any other change does.

As pitches are powers of two, x / p, v / p and z p are exact. One random byte for each element
decides the rounding: with t the integer nearest to 256 x / p, and r uniform in 0..255, it is
z = floor((t + r) / 256), of which E[z] = t / 256, within 2^-9 of x / p.
"""

from __future__ import annotations

import math
import struct
import threading
from collections import deque
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from xxhash import xxh3_64_intdigest

from peer.codec.formats import Bytes
from peer.codec.rotation import rotate, rotate_back

BLOCK = 1 << 16
"""Elements of a block: what is worked on stays in the processor's cache, and the block's header is
a 4,000th of it."""

BITS = (8, 16)
"""Bits an element may take, fewest first."""

FULL_PRECISION = 0
"""Takes the place of a number of bits: send the vector as it is, not on a lattice."""

HEADER = struct.Struct("<iQ")  # exponent of the pitch, checksum

MARGIN = 1.5
"""How many times the distance expected a block's integers reach, at least; at most twice as many.
Raised: fewer messages have to be sent again; lowered: the pitch, and with it the error, is less."""

FINEST = 2.0**-20
"""Smallest pitch, in units of the block's largest element: 256 x / p fits 32 bits, and float32 has
not much more to tell."""

FINEST_ROTATED = 2.0**-17
"""Likewise after a rotation, of which float32 has less to tell."""

ROUNDED = 1 - 2.0**-14
"""By rounding, a block's largest element may have grown by as much as the smallest pitch."""

EXPONENTS = range(-100, 86)
"""Of pitches: 256 / p is finite in float32, and so is whatever may come out of 32 bits, rotated."""

UNFIT = 2**31 - 1
"""In place of the exponent of a block for which there is no pitch: NaN, infinite or too large."""

WINDOW = 8  # distances that `Distances` looks back on

Array: TypeAlias = NDArray[Any]


def more_bits(bits: int) -> int:
    """What to try after `bits`."""
    return next((more for more in BITS if more > bits), FULL_PRECISION)


def encoded_bytes(elements: int, bits: int) -> int:
    """Length of an encoded vector, shape (elements,)."""
    return elements * (bits // 8) + -(-elements // BLOCK) * HEADER.size


def exponent_for(distance: float, largest: float, finest: float = FINEST) -> int:
    """Of the pitch of a block whose largest element is `largest`, at `distance` from its key. It
    leaves 8 bits a margin of MARGIN to 2 MARGIN, and 16 bits 256 times that."""
    least = max(MARGIN * distance / (2**7 - 1), largest * finest, 2.0 ** EXPONENTS[0])
    if not (largest >= 0 and least <= 2.0 ** EXPONENTS[-1]):  # NaN too
        return UNFIT
    mantissa, exponent = math.frexp(least)  # 0.5 <= mantissa < 1
    return exponent - (mantissa == 0.5)


class Encoder:
    """Encodes one vector, shape (d,), from its first block on.

    `seed` (64 bits) is that of the dither and of checksums. `is_rotated`: see `rotation`.
    `is_rounded`: the vector came out of `quantize`, at the same distance. It is encoded as it is.
    """

    def __init__(
        self,
        bits: int,
        seed: int,
        distance: float,
        *,
        is_rotated: bool = False,
        is_rounded: bool = False,
    ) -> None:
        self._bits, self._seed, self._distance = bits, seed, distance
        self._is_rotated, self._is_rounded = is_rotated, is_rounded
        finest = FINEST_ROTATED if is_rotated else FINEST
        self._finest = finest * ROUNDED if is_rounded else finest
        self._dither = None if is_rounded else np.random.SFC64(seed)

    def encode(self, values: Tensor) -> bytearray:
        """The next elements, shape (k,) on any device: whole blocks, or up to the vector's end."""
        array = _array(values)
        data = bytearray(encoded_bytes(len(array), self._bits))
        position = 0
        for start in range(0, len(array), BLOCK):
            position = self._block(array[start : start + BLOCK], data, position)
        return data

    def quantize(self, values: Tensor, out: Tensor) -> None:
        """Write into `out` what a receiver will decode of the next elements, shape (k,), whoever it
        is; a block that fits no lattice stays as it is."""
        array = _array(values)
        for start in range(0, len(array), BLOCK):
            x = array[start : start + BLOCK]
            y, z = _scratch(x)
            exponent = self._round(x, y, z)
            if exponent == UNFIT:
                np.copyto(y, x)
            else:
                _values(z, exponent, y, is_rotated=self._is_rotated)
            _write(y, out[start : start + BLOCK])

    def _round(self, x: Array, y: Array, z: NDArray[np.int32]) -> int:
        """Write the integers of a block into z; returns the exponent of the pitch, or UNFIT."""
        if self._is_rotated:
            x = rotate(x, out=y)
        largest = float(max(x.max(), -x.min()))
        exponent = exponent_for(self._distance, largest, self._finest)
        if exponent == UNFIT:
            return UNFIT
        parts = 256.0 if self._dither else 1.0
        np.multiply(x, x.dtype.type(math.ldexp(parts, -exponent)), out=y)
        np.rint(y, out=y)
        np.copyto(z, y, casting="unsafe")
        if self._dither:
            np.add(z, _random_bytes(self._dither, len(z)), out=z)
            np.right_shift(z, 8, out=z)
        return exponent

    def _block(self, x: Array, data: bytearray, position: int) -> int:
        y, z = _scratch(x)
        exponent = self._round(x, y, z)
        if exponent == UNFIT:
            HEADER.pack_into(data, position, UNFIT, 0)
            return position + encoded_bytes(len(x), self._bits)
        HEADER.pack_into(data, position, exponent, _checksum(z, self._seed, exponent))
        low = np.frombuffer(data, _unsigned(self._bits), len(z), position + HEADER.size)
        np.copyto(low, z, casting="unsafe")
        return position + HEADER.size + low.nbytes


class Decoder:
    """Decodes one vector, shape (d,), next to the key v = `key` * `scale`, of the same shape.

    `distance` is the largest |z p - v_k| of all blocks decoded so far, rounded up by at most p;
    `wanted_bits` are what to ask for after a failure.
    """

    def __init__(
        self, bits: int, seed: int, key: Tensor, scale: float = 1.0, *, is_rotated: bool = False
    ) -> None:
        self._bits, self._seed, self._scale = bits, seed, scale
        self._key = _array(key)
        self._is_rotated = is_rotated
        self.distance = 0.0
        self.wanted_bits = more_bits(bits)

    def decode(self, data: Bytes, start: int, out: Tensor) -> bool:
        """Decode elements from `start` on into `out`, shape (k,), contiguous and on the CPU.

        `data` holds whole blocks, but for the vector's last, and exactly k elements; anything else
        is a ValueError. False: a block is not what was encoded, and `out` is not to be used.
        """
        source = memoryview(data).cast("B")
        if source.nbytes != encoded_bytes(out.numel(), self._bits):
            raise ValueError(f"{source.nbytes} bytes are not {out.numel()} of {self._bits} bits")
        position = 0
        for a in range(0, out.numel(), BLOCK):
            part = out[a : a + BLOCK]
            end = position + encoded_bytes(part.numel(), self._bits)
            if not self._block(source[position:end], start + a, part):
                return False
            position = end
        return True

    def _block(self, source: memoryview, start: int, out: Tensor) -> bool:
        exponent, checksum = HEADER.unpack_from(source)
        if exponent not in EXPONENTS:
            self.wanted_bits = FULL_PRECISION
            return False
        pitch = math.ldexp(1.0, exponent)
        key = self._key[start : start + out.numel()]
        y, z = _scratch(key)
        low = np.frombuffer(source[HEADER.size :], _unsigned(self._bits))
        with np.errstate(all="ignore"):  # what overflows does not fit the checksum
            if self._is_rotated:
                key = rotate(key, out=y)
            np.multiply(key, key.dtype.type(self._scale / pitch), out=y)
            steps = _nearest(low, y, z)
            if _checksum(z, self._seed, exponent) != checksum:
                return False
            self.distance = max(self.distance, steps * pitch)
            _values(z, exponent, y, is_rotated=self._is_rotated)
        _write(y, out)
        return True


def _random_bytes(source: np.random.SFC64, count: int) -> NDArray[np.uint8]:
    words: NDArray[np.uint64] = source.random_raw(-(-count // 8))
    return words.view(np.uint8)[:count]


def _values(z: NDArray[np.int32], exponent: int, y: Array, *, is_rotated: bool) -> None:
    """Write into y what the integers stand for."""
    np.copyto(y, z)
    np.multiply(y, y.dtype.type(math.ldexp(1.0, exponent)), out=y)
    if is_rotated:
        rotate_back(y)


def _nearest(low: Array, y: Array, z: Array) -> int:
    """Write into z the integers congruent to `low` next to y; returns the largest |z - y|, rounded
    up."""
    off = _scratch_like(low)
    np.floor(y, out=y)
    np.copyto(z, y, casting="unsafe")
    np.add(z, 1, out=z)  # so that z - y <= 2^(bits-1) can be told from z - y = -2^(bits-1)
    np.copyto(off, z, casting="unsafe")
    np.subtract(low, off, out=off)
    signed = off.view(f"i{low.itemsize}")  # modulo 2^bits, next to 0
    np.add(z, signed, out=z)
    return max(-int(signed.min()), int(signed.max()) + 1)


class Distances:
    """Predicts a vector's distance from its key: the largest of the last WINDOW that were seen.

    A sum of models is as far from its key as the models in it together, so distances are kept for
    one model and predicted for `count` of them: unscaled, one that was lost on its way to the sum
    would make the next sum miss its key.
    """

    def __init__(self) -> None:
        self._seen: deque[float] = deque(maxlen=WINDOW)

    def saw(self, distance: float, count: float = 1.0) -> None:
        """What an acknowledgement reports of a sum of `count` models."""
        if 0 <= distance < math.inf:
            self._seen.append(distance / count)

    def predict(self, count: float = 1.0) -> float | None:
        """For a sum of `count` models; None before anything was seen."""
        return max(self._seen) * count if self._seen else None


def distance(values: Tensor, key: Tensor, scale: float, *, is_rotated: bool) -> float:
    """Largest |x_k - v_k| of x = `values`, shape (d,), from v = `key` * `scale`: what a Decoder
    reports, of a vector that came in full precision."""
    x, v = _array(values), _array(key)
    largest = 0.0
    with np.errstate(all="ignore"):
        for start in range(0, len(x), BLOCK):
            y, _ = _scratch(x[start : start + BLOCK])
            np.multiply(v[start : start + BLOCK], v.dtype.type(scale), out=y)
            np.subtract(x[start : start + BLOCK], y, out=y)
            if is_rotated:
                rotate(y, out=y)
            largest = max(largest, float(np.abs(y, out=y).max()))
    return largest


def _checksum(z: NDArray[np.int32], seed: int, exponent: int) -> int:
    return xxh3_64_intdigest(z.data, (seed + exponent) % 2**64)


def _array(vector: Tensor) -> Array:
    """The memory of a vector on the CPU; float64 as it is, everything else as float32."""
    dtype = torch.float64 if vector.dtype == torch.float64 else torch.float32
    array: Array = vector.detach().to(device="cpu", dtype=dtype).contiguous().numpy()
    return array


def _write(array: Array, out: Tensor) -> None:
    values = torch.from_numpy(array)
    if out.dtype == values.dtype and not out.is_cuda:
        np.copyto(out.numpy(), array)  # torch would take several threads for it
    else:
        out.copy_(values)


def _unsigned(bits: int) -> np.dtype[Any]:
    return np.dtype(f"<u{bits // 8}")


_local = threading.local()


def _scratch(like: Array) -> tuple[Array, NDArray[np.int32]]:
    """Memory of this thread to work in: for a block's values, and for its integers."""
    return _scratch_like(like), _memory("z", np.dtype(np.int32))[: len(like)]


def _scratch_like(like: Array) -> Array:
    return _memory(like.dtype.name, like.dtype)[: len(like)]


def _memory(name: str, dtype: np.dtype[Any]) -> Array:
    """A block of it: fresh memory would cost more than the work."""
    if not hasattr(_local, name):
        setattr(_local, name, np.empty(BLOCK, dtype))
    memory: Array = getattr(_local, name)
    return memory
