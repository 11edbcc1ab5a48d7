"""A random rotation before the lattice: the randomized Hadamard transform H D of each block.

D flips signs at random, H mixes groups of GROUP elements that lie far apart in the block. Distances
that a few elements dominate are spread over a group, so that the largest of them, and with it the
lattice's pitch, is less. It costs log2(GROUP) additions an element, once for the sender and three
times for the receiver: vector, key and back.

A block of n elements has groups of the largest power of two up to n, but at most GROUP; the n
modulo that size at its end stay as they are.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

GROUP = 1 << 10


def rotate(block: NDArray[Any], seed: int, out: NDArray[Any]) -> NDArray[Any]:
    """H D of a block, shape (n,), in `out`, which may be the block itself."""
    np.copyto(out, block)
    if len(out):
        groups = _groups(out)
        groups *= _signs(len(groups), seed, out.dtype.name)
        with np.errstate(all="ignore"):  # of what is not finite, nothing is
            _hadamard(groups)
    return out


def rotate_back(block: NDArray[Any], seed: int) -> None:
    """The inverse, in place."""
    if len(block):
        groups = _groups(block)
        _hadamard(groups)
        groups *= _signs(len(groups), seed, block.dtype.name)


def _groups(block: NDArray[Any]) -> NDArray[Any]:
    """A view of shape (size of a group, groups): a group is a column."""
    size = min(GROUP, 1 << (len(block).bit_length() - 1))
    return block[: len(block) // size * size].reshape(size, -1)


@lru_cache(maxsize=8)
def _signs(size: int, seed: int, dtype: str) -> NDArray[Any]:
    """Shape (size, 1), random +1 and -1 over the square root of `size`, by which H is divided."""
    random = np.random.Generator(np.random.SFC64([seed, size]))
    return (random.choice([-1.0, 1.0], (size, 1)) / math.sqrt(size)).astype(dtype)


def _hadamard(groups: NDArray[Any]) -> None:
    """H of every column, in place and not divided; `groups` has a power of two of rows."""
    size, columns = groups.shape
    half = 1
    while half < size:
        pairs = groups.reshape(-1, 2, half * columns)
        first, second = pairs[:, 0], pairs[:, 1]
        first += second
        second *= -2
        second += first
        half *= 2
