"""Searching for a rate, on functions whose best rate is known."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from peer.sweep.search import (
    DIVERGED,
    PRECISION,
    Score,
    Tried,
    bisect,
    halve_until_all_converge,
    sandwich,
)

RATES = st.floats(1e-4, 1e2)


def bowl(best: float) -> Tried:
    return Tried(lambda rate: (0.0, abs(math.log(rate / best))))


@given(RATES, RATES)
def test_a_sandwich_holds_the_best_rate(best: float, start: float) -> None:
    tried = bowl(best)
    low, middle, high = sandwich(tried, start)
    assert low == middle / 2
    assert high == middle * 2
    assert low <= best <= high
    assert tried(low) >= tried(middle) <= tried(high)
    assert middle / best <= math.sqrt(2) * (1 + 1e-9)
    assert best / middle <= math.sqrt(2) * (1 + 1e-9)


@given(RATES, RATES)
def test_bisection_finds_the_best_rate_up_to_its_precision(best: float, start: float) -> None:
    found = bisect(bowl(best), start)
    assert max(found / best, best / found) <= PRECISION**2


@given(st.floats(0.01, 10.0))
def test_a_rate_just_below_divergence_is_found(edge: float) -> None:
    """Steps needed fall as 1 / rate up to the edge, beyond which everything diverges."""

    def measure(rate: float) -> Score:
        return (0.0, 10 / rate) if rate <= edge else DIVERGED

    found = bisect(Tried(measure), 0.1)
    assert edge / PRECISION**2 <= found <= edge


def test_each_rate_is_run_once() -> None:
    runs: list[float] = []

    def measure(rate: float) -> Score:
        runs.append(rate)
        return (0.0, (rate - 3) ** 2)

    bisect(Tried(measure), 1.0)
    assert len(runs) == len(set(runs))


def test_a_start_that_diverges_is_left_behind() -> None:
    tried = Tried(lambda rate: (0.0, 1 / rate) if rate < 0.3 else DIVERGED)
    assert sandwich(tried, 0.5)[1] == 0.25


def test_half_the_rate_until_all_seeds_converge() -> None:
    limits = {0: 1.0, 1: 0.3, 2: 0.6}
    rate, counts = halve_until_all_converge(1.0, [0, 1, 2], lambda r, seed: r <= limits[seed])
    assert rate == 0.25
    assert counts == [(1.0, 1), (0.5, 2), (0.25, 3)]
