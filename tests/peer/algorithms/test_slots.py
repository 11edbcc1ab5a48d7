"""Rules R1, R2, R3, R5 and R6: what a single edge does with what comes in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peer.algorithms.core import DropReason, Epoch, Head, Kind, Received, Verdict
from peer.algorithms.slots import TIME_OUTS_BEFORE_SILENT, Label, Slot, label_of

NOW = (5, 0)


def message(step: int, round_: int = 0) -> Received:
    return Received(Head("b", 1, Epoch(1, 1), step, Kind.RELAY, round=round_, count=1), ())


def slot(*steps: int, used: int = 3, now: Label = NOW) -> Slot:
    """A slot whose last used step is `used` and to which messages of `steps` were offered."""
    new = Slot(start=(used, 0))
    for step in steps:
        new.offer(message(step), now)
    return new


def taken(edge: Slot, label: Label = NOW) -> int | None:
    received = edge.take(label)
    return received.head.step if received else None


def test_r1_a_message_is_used_at_most_once() -> None:
    edge = slot(5)
    assert taken(edge) == 5
    assert taken(edge) is None
    assert edge.judge((5, 0), NOW) is Verdict.DUPLICATE
    assert edge.offer(message(5), NOW) == [(message(5).head, DropReason.STALE)]
    assert taken(edge) is None


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans())))
def test_r1_the_steps_used_rise_strictly(events: list[tuple[int, bool]]) -> None:
    """Whatever comes, in whatever order, and whenever waiting ends."""
    edge, now, used = Slot(start=(-1, 0)), 0, []
    for ahead, ends in events:
        edge.offer(message(max(0, now + ahead)), (now, 0))
        if ends:
            used.append(taken(edge, (now, 0)))
            now += 1
    steps = [step for step in used if step is not None]
    assert steps == sorted(set(steps))


@pytest.mark.parametrize(
    ("offered", "used"),
    [((), None), ((5,), 5), ((4,), 4), ((4, 5), 5), ((5, 4), 5), ((7,), None), ((4, 7), 4)],
)
def test_r2_when_waiting_ends_the_newest_unused_is_taken(
    offered: tuple[int, ...], used: int | None
) -> None:
    """Use the newest unused s <= t (late is not lost)."""
    assert taken(slot(*offered)) == used


def test_r2_a_message_is_awaited_until_its_step_is_in() -> None:
    assert slot().awaited(NOW)
    assert slot(4).awaited(NOW)
    assert not slot(5).awaited(NOW)


@pytest.mark.parametrize("order", [(6, 8), (8, 6), (6, 8, 7)])
def test_r3_of_those_ahead_the_newest_wins(order: tuple[int, ...]) -> None:
    edge = slot(*order)
    assert edge.ahead(NOW) == (8, 0)
    assert len(edge.held) == 1
    assert not edge.awaited(NOW)  # messages keep their order: 5 will not come any more


def test_r3_who_loses_its_slot_is_named() -> None:
    edge = slot(4, 6)
    assert edge.offer(message(5), NOW) == [(message(4).head, DropReason.SUPERSEDED)]
    assert edge.offer(message(8), NOW) == [(message(6).head, DropReason.SUPERSEDED)]
    assert sorted(edge.held) == [(5, 0), (8, 0)]


@pytest.mark.parametrize(
    ("step", "verdict"),
    [
        (2, Verdict.STALE_STEP),
        (3, Verdict.DUPLICATE),  # the last one used
        (4, Verdict.DUPLICATE),  # held
        (5, Verdict.ACCEPTED),
        (6, Verdict.STALE_STEP),  # 7 is held
        (7, Verdict.DUPLICATE),
        (8, Verdict.ACCEPTED),
    ],
)
def test_r3_what_a_header_is_worth(step: int, verdict: Verdict) -> None:
    assert slot(4, 7).judge((step, 0), NOW) is verdict


def test_r5_a_known_loss_is_not_waited_for() -> None:
    edge = slot()
    edge.lost((4, 0))
    assert edge.awaited(NOW)
    edge.lost((5, 0))
    assert not edge.awaited(NOW)
    assert taken(edge) is None


def test_r5_what_was_thought_lost_is_welcome() -> None:
    """A broken stream may be tried again."""
    edge = slot()
    edge.lost((5, 0))
    assert edge.offer(message(5), NOW) == []
    assert taken(edge) == 5


def test_r6_three_time_outs_in_a_row_end_the_waiting() -> None:
    edge = slot()
    for _ in range(TIME_OUTS_BEFORE_SILENT):
        assert edge.awaited(NOW)
        edge.time_out()
    assert not edge.awaited(NOW)


@pytest.mark.parametrize(("step", "trusted_again"), [(4, False), (5, True), (6, True)])
def test_r6_only_a_timely_message_is_a_sign_of_life(step: int, trusted_again: bool) -> None:
    edge = slot()
    for _ in range(TIME_OUTS_BEFORE_SILENT):
        edge.time_out()
    edge.offer(message(step), NOW)
    assert edge.awaited((9, 0)) is trusted_again


def test_r6_time_outs_must_come_in_a_row() -> None:
    """Whatever comes between them, late as it may be, starts their count over."""
    edge = slot()
    for step in range(5, 15):
        edge.time_out()
        edge.time_out()
        edge.offer(message(step - 1), (step, 0))
        edge.take((step, 0))
    assert edge.awaited((15, 0))


def test_r6_an_announced_loss_is_no_sign_of_life() -> None:
    edge = slot()
    for _ in range(TIME_OUTS_BEFORE_SILENT):
        edge.time_out()
    edge.lost((5, 0))
    assert not edge.awaited((6, 0))


def test_rounds_are_ordered_within_steps() -> None:
    edge = Slot(start=(4, 2))
    edge.offer(message(5, 1), (5, 0))
    edge.offer(message(5, 0), (5, 0))
    assert [label_of(held.head) for held in (edge.take((5, 0)), edge.take((5, 1))) if held] == [
        (5, 0),
        (5, 1),
    ]


def test_a_header_can_be_judged_while_the_slot_changes() -> None:
    """Transport threads judge headers; so what they iterate over is never changed in place."""
    edge = slot(4)
    seen_by_a_reader = edge.held
    edge.offer(message(7), NOW)
    assert sorted(seen_by_a_reader) == [(4, 0)]
    assert sorted(edge.held) == [(4, 0), (7, 0)]
