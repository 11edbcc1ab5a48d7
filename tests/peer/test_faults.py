"""The fault plan: the right share of messages, the same ones for all who ask."""

import itertools
import math

from hypothesis import given
from hypothesis import strategies as st

from peer.faults import FaultPlan
from relayswarm.config import FaultsConfig

PEERS = [f"peer-{i}" for i in range(8)]


def plan(drop: float, seed: int = 0) -> FaultPlan:
    return FaultPlan(FaultsConfig(drop=drop), seed)


def losses(plan: FaultPlan, steps: int) -> list[bool]:
    return [
        plan.drops(step, 0, 0, sender, receiver)
        for step in range(steps)
        for sender in PEERS
        for receiver in PEERS
        if sender != receiver
    ]


def test_loses_the_share_it_is_told_to() -> None:
    for drop in (0.01, 0.1, 0.5):
        lost = losses(plan(drop, seed=3), steps=200)
        deviation = math.sqrt(len(lost) * drop * (1 - drop))
        # five standard deviations: one such plan in 1.7 million would fail, and it is a fixed one
        assert abs(sum(lost) - len(lost) * drop) < 5 * deviation


def test_losses_are_not_bunched() -> None:
    """A pair of successive messages is lost with probability drop^2: losses are independent."""
    lost = losses(plan(0.3, seed=1), steps=200)
    pairs = sum(a and b for a, b in itertools.pairwise(lost))
    expected = (len(lost) - 1) * 0.09
    assert abs(pairs - expected) < 6 * math.sqrt(expected)


@given(st.integers(0, 2**31 - 1), st.integers(0, 10**6), st.integers(0, 3), st.sampled_from(PEERS))
def test_never_and_always(seed: int, step: int, round: int, sender: str) -> None:
    assert not plan(0.0, seed).drops(step, round, 0, sender, "other")
    assert plan(1.0, seed).drops(step, round, 0, sender, "other")


@given(st.integers(0, 2**31 - 1), st.integers(0, 10**6))
def test_is_a_function_of_its_arguments_and_both_halves_share_a_fate(seed: int, step: int) -> None:
    first, second = plan(0.5, seed), plan(0.5, seed)
    a = first.drops(step, 0, 0, "peer-1", "peer-2")
    assert second.drops(step, 0, 0, "peer-1", "peer-2") == a
    assert second.drops(step, 0, 1, "peer-1", "peer-2") == a


def test_a_more_lossy_plan_loses_what_the_milder_one_does_and_more() -> None:
    mild, harsh = losses(plan(0.1), 50), losses(plan(0.2), 50)
    assert all(b for a, b in zip(mild, harsh, strict=True) if a)


def test_seed_step_round_and_direction_matter() -> None:
    base = losses(plan(0.5, seed=0), 20)
    assert losses(plan(0.5, seed=1), 20) != base
    p = plan(0.5)
    forth = [p.drops(step, 0, 0, "a", "b") for step in range(64)]
    assert [p.drops(step, 0, 0, "b", "a") for step in range(64)] != forth
    assert [p.drops(step, 1, 0, "a", "b") for step in range(64)] != forth


def test_names_cannot_run_into_each_other() -> None:
    p = plan(0.5)
    one = [p.drops(step, 0, 0, "a', 'b", "c") for step in range(64)]
    assert [p.drops(step, 0, 0, "a", "b', 'c") for step in range(64)] != one


def test_the_daemons_and_the_simulator_agree_for_good() -> None:
    """Pins the plan: recorded runs are replayed with later versions."""
    p = plan(0.5, seed=7)
    fates = "".join("x" if p.drops(step, 0, 0, "peer-0", "peer-1") else "." for step in range(32))
    assert fates == ".xxx..xx....x.........x...x.x.xx"


def test_says_whether_losses_are_announced() -> None:
    assert FaultPlan(FaultsConfig(loss="known"), 0).announced
    assert not FaultPlan(FaultsConfig(loss="silent"), 0).announced
