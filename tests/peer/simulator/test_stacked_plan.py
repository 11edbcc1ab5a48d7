"""Stages respect what depends on what, and plans repeat only when they do."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from peer.algorithms.core import Averaged
from peer.codec import Format
from peer.simulator.counts import Count, Formula
from peer.simulator.plan import History, Part, Plan, Stage, Training
from peer.simulator.table import Table

ROWS = 5


def combination() -> st.SearchStrategy[tuple[int, list[tuple[int, int]], int]]:
    row = st.integers(0, ROWS - 1)
    terms = st.lists(st.tuples(st.integers(-2, 2), row), max_size=3)
    return st.tuples(row, terms, st.sampled_from([1, 2, 4]))


def carried_out(stages: list[Stage], rows: list[Fraction]) -> list[Fraction]:
    """All of a stage from the rows before it."""
    for stage in stages:
        ends = [*stage.offsets[1:], len(stage.rows)]
        before = list(rows)
        whole = zip(stage.targets, stage.offsets, ends, stage.divisors, strict=True)
        for target, start, end, divisor in whole:
            pairs = zip(stage.coefs[start:end], stage.rows[start:end], strict=True)
            total = sum((Fraction(coef) * before[row] for coef, row in pairs), Fraction(0))
            rows[target] = total / Fraction(divisor)
    return rows


@given(st.lists(combination(), max_size=12))
def test_stages_come_to_what_one_combination_after_another_does(
    combinations: list[tuple[int, list[tuple[int, int]], int]],
) -> None:
    part = Part(ROWS)
    start = [Fraction(3**k) for k in range(ROWS)]
    expected = list(start)
    for target, terms, divisor in combinations:
        part.form(target, terms, divisor)
        total = sum((coef * expected[row] for coef, row in terms), Fraction(0))
        expected[target] = total / divisor
    stages = part.take()
    assert carried_out(stages, list(start)) == expected
    assert carried_out([stage.longest_first() for stage in stages], list(start)) == expected
    assert all(len(set(stage.targets)) == len(stage.targets) for stage in stages)
    assert part.take() == []


def test_independent_combinations_share_a_stage() -> None:
    part = Part(4)
    part.form(0, [(1, 0), (1, 1)], 2)
    part.form(1, [(1, 2)], 1)  # overwrites what the first has read: allowed in the same stage
    part.form(3, [(1, 0)], 1)  # needs the first
    assert [stage.targets for stage in part.take()] == [[0, 1], [3]]


def test_a_row_is_free_once_nobody_refers_to_its_message() -> None:
    part = Part(10)
    held = part.new_row("a", 0)
    assert part.new_row("b", 0).number != held.number
    number = held.number
    assert part.new_row("a", 1).number != number
    del held
    assert part.new_row("a", 2).number == number


def plan_of(step: int, coef: float, peers: int = 2, **changes: Any) -> Plan:
    averaged = [(k, Averaged(step, peers, peers, 1, 0, 0, step / 7)) for k in range(peers)]
    trainings = [Training(k, step, 1, None) for k in range(peers)]
    parts: dict[str, Any] = {
        "base": step,
        "trainings": trainings,
        "stages": ([Stage([0], [0], [1], [coef], [1.0])],),
        "averaged": averaged,
    }
    return Plan(**{**parts, **changes})


def first_repeat(coefs: list[float], period: int | None) -> int | None:
    """After which of these steps the plans are said to repeat."""
    history = History(2)
    found = [step for step, c in enumerate(coefs) if history.add(plan_of(step, c), period)]
    return found[0] if found else None


def test_two_equal_cycles_are_needed() -> None:
    assert first_repeat([5.0, 4.0, 1.0, 1.0], 1) == 3
    assert first_repeat([1.0, 2.0, 1.0, 2.0], 1) == 3  # a multiple of the period
    assert first_repeat([1.0, 2.0, 3.0, 1.0, 2.0, 3.0], 3) == 5
    assert first_repeat([1.0, 2.0, 3.0, 1.0, 2.0, 4.0], 3) is None


def test_nothing_repeats_without_a_promise() -> None:
    assert first_repeat([1.0] * 50, None) is None
    assert first_repeat([1.0, 1.0, 1.0], 2) is None  # a shorter pattern than promised is no proof


def test_a_step_that_not_all_take_together_ends_a_pattern() -> None:
    history = History(2)
    assert history.add(plan_of(0, 1.0), 1) is None
    one = plan_of(1, 1.0, trainings=[Training(0, 1, 1, None)])
    assert history.add(one, 1) is None
    assert history.add(plan_of(2, 1.0), 1) is None
    assert history.add(plan_of(3, 1.0), 1) is not None


def test_every_difference_counts() -> None:
    same = plan_of(3, 0.5)
    assert plan_of(9, 0.5).repeats(same)
    assert not plan_of(9, 0.25).repeats(same)
    slower = [Training(k, 9, Fraction(1, 2), None) for k in range(2)]
    assert not plan_of(9, 0.5, trainings=slower).repeats(same)
    fewer = [(k, Averaged(9, 1, 2, 1, 1, 0, 0.0)) for k in range(2)]
    assert not plan_of(9, 0.5, averaged=fewer).repeats(same)


def one_peer(*, is_exact: bool = False) -> Table:
    """Its model is in row 0; messages follow."""
    start = torch.ones(1, dtype=torch.float64)
    return Table(start, 1, [], 1, Format.FLOAT64, 1, is_exact=is_exact)


@pytest.mark.parametrize("is_exact", [False, True])
def test_numbers_follow_from_the_counts_of_messages(*, is_exact: bool) -> None:
    """A message in row 1 with one model more in it every time, and a mean by its count."""
    table = one_peer(is_exact=is_exact)
    part = Part(1)
    part.form(1, [(1, 0)], 1, Formula(1, ((1, 1),), value=1))
    part.form(2, [(Count.of(1, row=1) + 4, 0)], Count.of(1, row=1))
    steps = table.compiled(part.take())
    for count in (1, 2, 3, 4):
        table.apply(0, steps, is_first=count == 1)
        assert all(step.is_sound for step in steps)
        assert table.counts([Formula(10, ((1, 2),))]) == [10 + 2 * count]
        assert table.rows(slice(2, 3)).item() == pytest.approx((count + 4) / count)


def test_numbers_that_do_not_follow_are_found_and_recorded_ones_are_used() -> None:
    """The count is of a message that was in row 1 before: the one there now has another."""
    table = one_peer()
    part = Part(1)
    part.form(1, [(1, 0)], 1, Formula(2, value=2))
    part.form(0, [(Count.of(5, row=1), 0)], 1)
    steps = table.compiled(part.take())
    table.apply(0, steps)
    assert [step.is_sound for step in steps] == [True, False]
    assert table.models().item() == 5
