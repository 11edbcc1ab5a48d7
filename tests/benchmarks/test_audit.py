"""The blocks of steps that `benchmarks/audit.py` compares."""

from __future__ import annotations

import random

import pytest

from benchmarks.audit import CASES, is_audited, median_within, pairs, seconds_of_blocks


def test_blocks_with_the_audit_lie_between_blocks_without() -> None:
    """A step takes 1 s, with the audit 1.5 s, and the first of each block is not counted."""
    block, blocks = 5, 9
    at, times = 0.0, []
    for step in range(block * blocks):
        at += 100.0 if step % block == 0 else 1.5 if is_audited(step, block) else 1.0
        times.append((at, 0.0))
    seconds = seconds_of_blocks(times, 0, block)
    assert len(seconds) == blocks
    assert seconds == pytest.approx([1.0, 1.5] * 4 + [1.0])
    assert list(pairs(seconds)) == [pytest.approx((1.5, 1.0))] * 3


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_case_ends_without_the_audit(case: object) -> None:
    assert case.blocks % 2 == 1
    assert case.config().steps == case.block * case.blocks


def test_the_interval_holds_the_median_as_often_as_it_says() -> None:
    draw = random.Random(1)
    found = [median_within(draw.gauss(3.0, 1.0) for _ in range(100)) for _ in range(400)]
    assert all(low <= middle <= high for low, middle, high in found)
    assert 0.93 < sum(low <= 3.0 <= high for low, _, high in found) / 400 < 0.99
