"""Whom to call: each as likely, the silent ever more rarely."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest

from peer.algorithms.draw import Draw
from peer.algorithms.partners import FAILURES_BEFORE_REST, LONGEST_REST_LOG2, Partners

NEIGHBOURS = ("b", "c", "d")


def partners() -> Partners:
    return Partners(Draw(0, "a"))


def steps_called(who: Partners, peer: str, steps: range) -> list[int]:
    """In which steps `peer` is called, if it never answers."""
    called = []
    for step in steps:
        if who.awake([peer], step):
            called.append(step)
            who.unanswered(peer, step)
    return called


def test_each_neighbour_is_as_likely() -> None:
    who = partners()
    counts: Counter[str | None] = Counter()
    for step in range(3000):
        who.begin()
        counts[who.pick(NEIGHBOURS, step)] += 1
    assert all(abs(counts[peer] - 1000) < 5 * (3000 * 2 / 9) ** 0.5 for peer in NEIGHBOURS)


def test_draws_follow_the_weights() -> None:
    """Within five standard deviations; who is not named weighs 1."""
    who = Partners(Draw(0, "a"), {"b": 0.5, "d": 2.5})
    counts: Counter[str | None] = Counter()
    for step in range(8000):
        who.begin()
        counts[who.pick(NEIGHBOURS, step)] += 1
    for peer, share in (("b", 0.5 / 4), ("c", 1 / 4), ("d", 2.5 / 4)):
        assert abs(counts[peer] - 8000 * share) < 5 * (8000 * share * (1 - share)) ** 0.5


def test_the_weights_are_those_of_who_is_left() -> None:
    who = Partners(Draw(0, "a"), {"b": 1e9, "c": 3.0})
    counts: Counter[str | None] = Counter()
    for step in range(4000):
        who.begin()
        assert who.pick(("b",), step) == "b"
        counts[who.pick(NEIGHBOURS, step)] += 1
    assert abs(counts["c"] - 3000) < 5 * (4000 * 3 / 16) ** 0.5
    assert counts["b"] == 0


@pytest.mark.parametrize("weights", [{}, {"b": 1.0}, {"b": 0.3, "c": 0.3, "d": 0.3}])
def test_equal_weights_change_no_draw(weights: dict[str, float]) -> None:
    plain, weighted = Draw(3, "a"), Partners(Draw(3, "a"), weights)
    for step in range(200):
        weighted.begin()
        assert weighted.pick(NEIGHBOURS, step) == plain.choice(NEIGHBOURS)


def test_a_failed_call_is_followed_by_one_to_another() -> None:
    who = partners()
    assert {who.pick(NEIGHBOURS, 0) for _ in range(3)} == set(NEIGHBOURS)
    assert who.pick(NEIGHBOURS, 0) is None
    who.begin()
    assert who.pick(NEIGHBOURS, 0) in NEIGHBOURS


def test_the_silent_are_called_ever_more_rarely() -> None:
    """Left out of 2, 4, 8, ... steps from the third failure on."""
    assert steps_called(partners(), "b", range(40)) == [0, 1, 2, 5, 10, 19, 36]


def test_but_they_are_called_for_ever() -> None:
    called = steps_called(partners(), "b", range(1000))
    longest = max(b - a for a, b in pairwise(called))
    assert longest == 1 + 2**LONGEST_REST_LOG2
    assert called[-1] > 900


def test_an_unreachable_peer_rests_at_once() -> None:
    who = partners()
    who.unanswered("b", 0, unreachable=True)
    assert [who.awake(["b"], step) for step in range(1, 4)] == [[], [], ["b"]]


def test_something_from_it_ends_its_rest() -> None:
    who = partners()
    for step in range(FAILURES_BEFORE_REST):
        who.unanswered("b", step)
    assert who.awake(NEIGHBOURS, 4) == ["c", "d"]
    who.heard("b")
    assert who.awake(NEIGHBOURS, 4) == ["b", "c", "d"]
    assert steps_called(who, "b", range(5, 9)) == [5, 6, 7]
