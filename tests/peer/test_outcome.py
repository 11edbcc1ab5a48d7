from __future__ import annotations

import pytest

from peer.outcome import headline, mean, shown, worst


@pytest.mark.parametrize(
    ("metric", "values", "expected"),
    [
        ("accuracy", [0.9, 0.7, 0.8], 0.7),
        ("top5_accuracy", [0.9, 0.7], 0.7),
        ("loss", [0.1, 0.4], 0.4),
        ("suboptimality", [3.0, 2.0], 3.0),
        ("accuracy", [0.9, None], None),
        ("loss", [], None),
    ],
)
def test_the_worst_follows_the_direction_of_the_metric(
    metric: str, values: list[float | None], expected: float | None
) -> None:
    assert worst(metric, values) == expected


def test_a_mean_with_a_value_that_was_not_finite_is_not_finite() -> None:
    assert mean([1.0, 2.0, 6.0]) == 3.0
    assert mean([1.0, None]) is None
    assert mean([]) is None


def test_accuracy_alone_sums_up_a_task_that_has_one() -> None:
    assert headline({"loss": 1.0, "accuracy": 0.5}) == ("accuracy",)
    assert headline({"loss": 1.0, "suboptimality": 0.5}) == ("loss", "suboptimality")


def test_values_for_people() -> None:
    assert shown("accuracy", 0.97777) == "97.8%"
    assert shown("loss", 0.123456) == "0.1235"
    assert shown("loss", None) == "not finite"
