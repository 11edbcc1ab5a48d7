"""The step at which all can still switch together, from what members have told."""

import pytest

from coordinator.progress import MARGIN_S, Progress, effective_step


@pytest.mark.parametrize(
    ("reports", "now", "expected"),
    [
        ([Progress(10, 0.0)], 0.0, 11),  # no rate known: the next step
        ([Progress(10, 0.0), Progress(12, 0.0)], 3.0, 13),
        ([Progress(10, 0.0, rate=0.0)], 9.0, 11),  # the swarm stands still
        ([Progress(10, 0.0, rate=2.0)], 0.0, 12),  # 10 + 2 * 0.5 + 1
        ([Progress(10, 0.0, rate=2.0)], 1.0, 14),  # 10 + 2 * 1.5 + 1
        ([Progress(10, 0.0, rate=0.1)], 0.0, 12),  # a part of a step counts as a step
        ([Progress(10, 0.0, rate=4.0), Progress(0, 1.0)], 1.0, 17),  # a newcomer does not matter
        ([Progress(10, 0.0, rate=2.0), Progress(9, 0.0, rate=900.0)], 0.0, 12),  # it has jumped
    ],
)
def test_the_effective_step(reports: list[Progress], now: float, expected: int) -> None:
    assert MARGIN_S == 0.5
    assert effective_step(reports, now) == expected


def test_the_rate_is_measured_between_reports_well_apart() -> None:
    progress = Progress.begin(0, 0.0).report(10, 1.0, window_s=0.5)
    assert progress.rate == 10.0
    soon = progress.report(14, 1.001, window_s=0.5)
    assert (soon.step, soon.rate) == (14, 10.0)
    assert soon.report(20, 2.0, window_s=0.5).rate == 10.0
    assert progress.report(5, 2.0, window_s=0.5).rate == 0.0  # backwards, after a restart
