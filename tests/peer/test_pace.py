"""A peer's place in the schedule, where that follows the swarm."""

from __future__ import annotations

import math

from peer.pace import Pace


def test_before_anything_is_known_its_own_steps_count() -> None:
    assert [Pace(10).place(own) for own in (0, 3, 9)] == [0, 3, 9]


def test_it_is_the_swarms_progress_and_what_this_peer_has_done_since() -> None:
    pace = Pace(100)
    pace.told(40.7, own=8)
    assert [pace.place(own) for own in (8, 9, 12)] == [40, 41, 44]
    pace.told(45.0, own=12)
    assert pace.place(12) == 45


def test_it_never_goes_back_nor_beyond_the_last_step() -> None:
    pace = Pace(100)
    pace.told(50.0, own=50)
    assert pace.place(60) == 60
    pace.told(55.0, own=60)  # the others are slower
    assert pace.place(60) == 60
    assert pace.place(66) == 61
    pace.told(99.5, own=66)
    assert pace.place(70) == 99


def test_nonsense_is_passed_over() -> None:
    pace = Pace(100)
    for progress in (math.nan, math.inf):
        pace.told(progress, own=0)
    assert pace.place(5) == 5


def test_a_joiner_that_takes_over_a_model_is_where_the_swarm_is() -> None:
    pace = Pace(100)
    pace.told(30.0, own=12)  # with its first view
    assert pace.place(12) == 30
