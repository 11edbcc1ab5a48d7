"""A random rotation before the lattice: the randomized Hadamard transform H D of each block.

D flips signs, at random but always the same; H mixes groups of elements that lie far apart in the
block. Distances that a few elements dominate are spread over a group, so that the largest of them,
and with it the lattice's pitch, is less. It costs log2(GROUP) additions an element, once for the
sender and twice for the receiver: its key, and the result back.

A group has s elements, the largest power of two up to the block's n, but at most GROUP. With
m = floor(n / s) groups, element j of group i is the block's j m + i; the n - m s elements at its
end stay as they are. Element j changes its sign if bit 0 of XXH3 (64 bits, seed 0) of j as int32 is
set.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

GROUP = 1 << 10


def rotate(block: NDArray[Any], out: NDArray[Any]) -> NDArray[Any]:
    """H D of a block, shape (n,), in `out`, which may be the block itself."""
    np.copyto(out, block)
    if len(out):
        groups = _groups(out)
        groups *= _signs(len(groups), out.dtype.name)
        with np.errstate(all="ignore"):  # of what is not finite, nothing is
            _hadamard(groups)
    return out


def rotate_back(block: NDArray[Any]) -> None:
    """The inverse, in place."""
    if len(block):
        groups = _groups(block)
        _hadamard(groups)
        groups *= _signs(len(groups), block.dtype.name)


def _groups(block: NDArray[Any]) -> NDArray[Any]:
    """A view of shape (size of a group, groups): a group is a column."""
    size = min(GROUP, 1 << (len(block).bit_length() - 1))
    return block[: len(block) // size * size].reshape(size, -1)


@lru_cache
def _signs(size: int, dtype: str) -> NDArray[Any]:
    """Shape (size, 1), +1 and -1 over the square root of `size`, by which H is divided."""
    flips = [xxh3_64_intdigest(j.to_bytes(4, "little")) % 2 for j in range(size)]
    return (np.where(flips, -1.0, 1.0) / math.sqrt(size)).astype(dtype)[:, None]


def _hadamard(groups: NDArray[Any]) -> None:
    """H of every column, in place and not divided; `groups` has a power of two of rows."""
    size, columns = groups.shape
    source, target = groups, np.empty_like(groups)
    half = 1
    while half < size:
        pairs, mixed = (m.reshape(-1, 2, half * columns) for m in (source, target))
        np.add(pairs[:, 0], pairs[:, 1], out=mixed[:, 0])
        np.subtract(pairs[:, 0], pairs[:, 1], out=mixed[:, 1])
        source, target = target, source
        half *= 2
    if source is not groups:
        np.copyto(groups, source)
