"""The rate at each step."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peer.training.schedule import learning_rate


def test_constant_is_constant() -> None:
    assert {learning_rate(0.3, "constant", step, 10) for step in range(10)} == {0.3}


def test_cosine_falls_from_the_base_rate_past_its_half_to_nearly_nothing() -> None:
    rates = [learning_rate(2.0, "cosine", step, 4) for step in range(4)]
    expected = [2.0, 1 + math.sqrt(0.5), 1.0, 1 - math.sqrt(0.5)]
    assert rates == pytest.approx(expected)


def test_steps_decay_where_the_paper_has_them_or_where_asked() -> None:
    rates = [learning_rate(1.0, "step", epoch, 200, 5) for epoch in (4, 149, 150, 179, 180, 199)]
    assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    own = [learning_rate(1.0, "step", epoch, 90, 5, (1 / 3, 2 / 3), 0.5) for epoch in (29, 30, 60)]
    assert own == [1, 0.5, 0.25]


@pytest.mark.parametrize("schedule", ["constant", "cosine", "step"])
def test_warm_up_rises_linearly_to_the_base_rate(schedule) -> None:
    rates = [learning_rate(1.0, schedule, step, 100, warmup_steps=4) for step in range(5)]
    assert rates == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_a_warm_up_can_begin_above_nothing() -> None:
    rates = [learning_rate(0.2, "step", epoch, 90, 5, warmup_from=0.5) for epoch in range(6)]
    assert rates == pytest.approx([0.12, 0.14, 0.16, 0.18, 0.2, 0.2])


def test_steps_beyond_the_last_keep_its_rate() -> None:
    assert learning_rate(1.0, "cosine", 50, 10) == learning_rate(1.0, "cosine", 9, 10) > 0


def test_a_warm_up_longer_than_the_run_never_reaches_the_base_rate() -> None:
    assert learning_rate(1.0, "cosine", 9, 10, warmup_steps=20) == 0.5


@given(
    step=st.integers(0, 1000),
    total=st.integers(1, 1000),
    warmup=st.integers(0, 50),
    schedule=st.sampled_from(["constant", "cosine", "step"]),
)
def test_rates_are_positive_and_at_most_the_base_rate(step, total, warmup, schedule) -> None:
    assert 0 < learning_rate(1.0, schedule, step, total, warmup) <= 1
