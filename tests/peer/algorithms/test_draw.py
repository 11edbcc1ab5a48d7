"""Random choices that are the same everywhere."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peer.algorithms.draw import Draw

WHOLE = 1 << 64


def test_it_is_splitmix64() -> None:
    """The first numbers of the reference implementation, in C, for the seed 0."""
    draw = Draw(0, "")
    assert [draw.below(WHOLE) for _ in range(3)] == [
        0xE220A8397B1DCDAF,
        0x6E789E6AA1B965F4,
        0x06C45D188009454F,
    ]


@pytest.mark.parametrize("other", [Draw(1, "peer-0"), Draw(0, "peer-1"), Draw(0, "peer-10")])
def test_seed_and_name_make_the_difference(other: Draw) -> None:
    draw, same = Draw(0, "peer-0"), Draw(0, "peer-0")
    numbers = [draw.below(WHOLE) for _ in range(9)]
    assert numbers == [same.below(WHOLE) for _ in range(9)]
    assert not set(numbers) & {other.below(WHOLE) for _ in range(9)}


@given(st.integers(0, 2**40), st.integers(1, WHOLE))
def test_numbers_are_below_the_bound(seed: int, bound: int) -> None:
    assert 0 <= Draw(seed, "").below(bound) < bound


def test_choices_are_even() -> None:
    """Of 6000 throws of a die each face comes 1000 times, give or take five standard deviations."""
    draw = Draw(7, "die")
    faces = Counter(draw.choice("123456") for _ in range(6000))
    assert all(abs(faces[face] - 1000) < 5 * (6000 * 5 / 36) ** 0.5 for face in "123456")


@given(st.integers(0, 2**40), st.lists(st.floats(1e-300, 1e308), min_size=1, max_size=9))
def test_weights_of_any_size_choose_an_item(seed: int, weights: list[float]) -> None:
    items = range(len(weights))
    assert Draw(seed, "").weighted(items, weights) in items
