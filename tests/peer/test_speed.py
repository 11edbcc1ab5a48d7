"""Optimizer steps per second, over the last seconds."""

from __future__ import annotations

import pytest

from peer.speed import WINDOW_S, Speed


def test_it_is_unknown_before_two_steps() -> None:
    speed = Speed()
    speed.took(3, 5.0)
    assert speed.steps_per_s == 0.0


def test_steps_are_those_since_the_first_of_the_window() -> None:
    speed = Speed()
    for k in range(5):
        speed.took(3, 10.0 + 0.5 * k)
    assert speed.steps_per_s == pytest.approx(6.0)


def test_what_was_long_ago_does_not_count() -> None:
    speed = Speed()
    for k in range(100):
        speed.took(1, 0.1 * k)
    for k in range(1, 30):
        speed.took(1, 10.0 + k)
    assert speed.steps_per_s == pytest.approx(1.0)


def test_a_step_longer_than_the_window_counts() -> None:
    speed = Speed()
    for k in range(4):
        speed.took(1, 5 * WINDOW_S * k)
    assert speed.steps_per_s == pytest.approx(1 / (5 * WINDOW_S))
