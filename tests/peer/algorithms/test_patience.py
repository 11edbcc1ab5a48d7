"""Deadlines that follow how long steps take."""

from __future__ import annotations

import pytest

from peer.algorithms.patience import FEWEST_SAMPLES, SAMPLES, Patience


def after(steps_s: list[float], *, adapts: bool = True, least_s: float = 0.1) -> Patience:
    """What becomes of it over steps that took so long, none of which timed out."""
    patience, now = Patience(30.0, least_s, adapts=adapts), 0.0
    patience.step_ended(now, timed_out=False)
    for step_s in steps_s:
        now += step_s
        patience.step_ended(now, timed_out=False)
    return patience


def test_a_fixed_one_stays() -> None:
    assert after([1.0] * 50, adapts=False).deadline_s == 30.0


def test_it_is_long_until_enough_steps_are_measured() -> None:
    assert after([1.0] * (FEWEST_SAMPLES - 1)).deadline_s == 30.0
    assert after([1.0] * FEWEST_SAMPLES).deadline_s == 6.0


def test_it_is_a_multiple_of_the_shortest_step() -> None:
    """Waits of others make steps longer, and must not make deadlines longer in turn."""
    assert after([1.0, 7.0, 13.0, 7.0] * 10).deadline_s == 6.0


def test_it_follows_a_swarm_that_becomes_slower() -> None:
    assert after([1.0] * 20 + [2.0] * SAMPLES).deadline_s == 12.0


def test_it_is_never_shorter_nor_longer_than_said() -> None:
    assert after([0.001] * 40, least_s=0.5).deadline_s == 0.5
    assert after([20.0] * 40).deadline_s == 30.0


def test_time_outs_double_it_and_are_not_measured() -> None:
    patience, now = after([1.0] * 60), 60.0
    lengths = []
    for _ in range(4):
        now += patience.deadline_s
        patience.step_ended(now, timed_out=True)
        lengths.append(patience.deadline_s)
    assert lengths == [12.0, 24.0, 30.0, 30.0]
    patience.step_ended(now + 1.0, timed_out=False)
    assert patience.deadline_s == pytest.approx(6.0)


def test_a_pause_is_no_step() -> None:
    patience = after([1.0] * 60)
    patience.restart()
    patience.step_ended(60.001, timed_out=False)
    assert patience.deadline_s == 6.0
