"""A tiny generator of random choices, for methods that draw.

SplitMix64 (Steele, Lea and Flood 2014): a counter and a mixing function, the same numbers on every
platform and in every version of Python. Whoever draws owns one, so there is no global state.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import TypeVar

T = TypeVar("T")

MANTISSA_BITS = 53
_RANGE = 1 << 64
_GAMMA = 0x9E3779B97F4A7C15


class Draw:
    """Random choices that depend on the seed and the name alone."""

    def __init__(self, seed: int, name: str) -> None:
        self._state = seed % _RANGE
        for byte in name.encode():
            self._state = (self._bits() + byte) % _RANGE

    def below(self, n: int) -> int:
        """An integer from 0 to n - 1, each exactly as likely (n from 1 to 2^64)."""
        while (bits := self._bits()) >= _RANGE - _RANGE % n:
            pass
        return bits % n

    def choice(self, items: Sequence[T]) -> T:
        """One of the items, each exactly as likely."""
        return items[self.below(len(items))]

    def weighted(self, items: Sequence[T], weights: Sequence[float]) -> T:
        """One of the items, as likely as its weight (above 0) says; of equal weights, what `choice`
        gives."""
        largest = max(weights)
        if min(weights) == largest:
            return self.choice(items)
        shares = list(accumulate(weight / largest for weight in weights))  # no sum is infinite
        at = math.ldexp(self.below(1 << MANTISSA_BITS), -MANTISSA_BITS) * shares[-1]
        return items[bisect_right(shares, at, hi=len(items) - 1)]

    def _bits(self) -> int:
        self._state = (self._state + _GAMMA) % _RANGE
        z = self._state
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % _RANGE
        z = (z ^ z >> 27) * 0x94D049BB133111EB % _RANGE
        return z ^ z >> 31
