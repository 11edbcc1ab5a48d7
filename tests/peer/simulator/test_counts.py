"""A count is an integer that remembers what it is made of."""

from __future__ import annotations

from fractions import Fraction

import torch
from hypothesis import given
from hypothesis import strategies as st

from peer.simulator.counts import Count, Formula, Numbers, number

small = st.integers(0, 9)


@given(st.lists(st.tuples(st.sampled_from("+-r"), small), max_size=8), st.lists(small, min_size=10))
def test_the_formula_holds_for_other_counts(
    operations: list[tuple[str, int]], later: list[int]
) -> None:
    """Each operation combines with the count of a message, or with a constant."""

    def result(counts: list[int]) -> int:
        total: int = Count.of(counts[0], row=0)
        for k, (sign, value) in enumerate(operations):
            other = Count.of(counts[value], row=value) if k % 2 else value
            total = (
                total + other if sign == "+" else total - other if sign == "-" else other - total
            )
        return sum([total], 1)

    now = [3] * 10
    formula = number(result(now))
    assert isinstance(formula, Formula)
    for counts in (now, later):
        tensor = torch.tensor(counts, dtype=torch.float64)
        numbers = Numbers([formula], tensor.device)
        assert numbers.now(tensor).tolist() == [result(counts)]
        assert numbers.recorded.tolist() == [result(now)]


def test_to_an_algorithm_it_is_a_number_like_any_other() -> None:
    count = Count.of(3, row=5)
    assert count == 3
    assert hash(count) == hash(3)
    assert 1 <= count <= 4
    assert (count * 2, count / 2, min(count, 7)) == (6, 1.5, 3)
    assert Fraction(1, 2) + count == Fraction(7, 2)
    assert not Count.of(0, row=5)


def test_anything_but_sums_and_differences_is_a_constant() -> None:
    count = Count.of(3, row=5)
    assert number(2 * count) == 6.0
    assert number(count / 2) == 1.5
    assert number(4) == 4.0
