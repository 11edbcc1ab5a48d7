"""The course of a step: rules R2 and R4 to R8 as a whole peer follows them, and new epochs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from peer.algorithms.core import (
    Averaged,
    Cancel,
    Drop,
    DropReason,
    Effect,
    Epoch,
    Finished,
    Gone,
    Head,
    Kind,
    Message,
    NewView,
    Received,
    Run,
    Send,
    SendDone,
    Set,
    Tick,
    Train,
    Trained,
    Verdict,
    View,
)
from peer.algorithms.d2 import D2
from peer.algorithms.relaysgd import Options, RelaySGD
from peer.algorithms.synchronous import Phase

DEADLINE_S = 10.0
RUN = Run(total_steps=9, deadline_s=DEADLINE_S)


def view(number: int = 1, effective_step: int = 0, members: str = "abc") -> View:
    """Of peer a in the chain a - b - c, or a - b."""
    return View(
        epoch=Epoch(1, number),
        effective_step=effective_step,
        me="a",
        members=dict.fromkeys(members, 1),
        trees=({"b": len(members) - 1},),
        mixing=dict.fromkeys("ab", 0.5),
    )


def fork(number: int = 1) -> View:
    """Of peer a in the middle of the chain b - a - c."""
    return replace(view(number), trees=({"b": 1, "c": 1},))


def from_b(step: int, *, epoch: int = 1, kind: Kind = Kind.RELAY, sender: str = "b") -> Received:
    head = Head(sender, 1, Epoch(1, epoch), step, kind, count=1)
    return Received(head, (Message(head),))


def training(
    step: int = 0, run: Run = RUN, options: Options | None = None, of: View | None = None
) -> RelaySGD:
    """Peer a while it trains `step`, all messages of b having come in time."""
    peer = RelaySGD(run, options)
    peer.handle(NewView(of or view()), 0.0)
    for t in range(step):
        peer.handle(from_b(t), float(t))
        peer.handle(Trained(t, 1), float(t + 1))
    assert (peer.phase, peer.step) == (Phase.TRAINING, step)
    return peer


def waiting(step: int = 0) -> RelaySGD:
    """Peer a since it began, at time 100, to wait for b's message of `step`."""
    peer = training(step)
    peer.handle(Trained(step, 1), 100.0)
    assert peer.phase is Phase.WAITING
    return peer


def of(kind: type[Effect], effects: list[Effect]) -> list[Effect]:
    return [effect for effect in effects if isinstance(effect, kind)]


def averaged(effects: list[Effect]) -> Averaged:
    (effect,) = (effect for effect in effects if isinstance(effect, Averaged))
    return effect


# --- the rules ------------------------------------------------------------------------------------


def test_a_step_trains_sends_waits_and_combines() -> None:
    peer = RelaySGD(RUN)
    first = peer.handle(NewView(view()), 0.0)
    assert [type(effect) for effect in first] == [Set, Train]
    sent = peer.handle(Trained(0, 1), 1.0)
    assert [(effect.to, effect.head.step) for effect in sent if isinstance(effect, Send)] == [
        ("b", 0)
    ]
    combined = peer.handle(from_b(0), 3.0)
    assert averaged(combined) == Averaged(0, 2, 3, expected=1, missed=0, late=0, waited_s=2.0)
    assert combined[-1] == Train(1)


def test_r2_waiting_ends_at_the_deadline_and_not_before() -> None:
    peer = waiting()
    assert peer.next_deadline() == 100.0 + DEADLINE_S
    assert peer.handle(Tick(), 100.0 + DEADLINE_S - 0.1) == []
    effects = peer.handle(Tick(), 100.0 + DEADLINE_S)
    assert averaged(effects) == Averaged(
        0, 1, 3, expected=1, missed=1, late=0, waited_s=DEADLINE_S, timed_out=1
    )
    assert peer.next_deadline() is None


def test_r2_late_is_not_lost() -> None:
    peer = waiting(2)
    peer.handle(Tick(), 100.0 + DEADLINE_S)
    peer.handle(from_b(2), 111.0)  # too late for step 2
    peer.handle(Trained(3, 1), 112.0)
    late = averaged(peer.handle(Tick(), 112.0 + DEADLINE_S))
    assert (late.step, late.missed, late.late) == (3, 0, 1)


def test_r4_a_slow_peer_jumps_ahead() -> None:
    """Labels its own message with the largest such s."""
    peer = training(1)
    peer.handle(from_b(5), 2.0)
    peer.handle(from_b(6), 3.0)
    effects = peer.handle(Trained(1, 1), 4.0)
    assert [send.head.step for send in effects if isinstance(send, Send)] == [6]
    assert averaged(effects).step == 6
    assert effects[-1] == Train(7)


def test_r4_nobody_jumps_past_the_end() -> None:
    peer = training()
    assert peer.admit(from_b(RUN.total_steps - 1).head) is Verdict.ACCEPTED
    assert peer.admit(from_b(RUN.total_steps).head) is Verdict.FOREIGN_RUN


def test_r5_an_announced_loss_ends_the_waiting() -> None:
    peer = waiting()
    assert averaged(peer.handle(Gone("b", from_b(0).head), 101.0)).missed == 1


def test_r5_a_loss_that_does_not_concern_the_step_changes_nothing() -> None:
    peer = waiting(1)
    for head in [
        from_b(0).head,
        replace(from_b(1).head, sender="c"),
        replace(from_b(1).head, epoch=Epoch(1, 7)),
        replace(from_b(1).head, incarnation=2),
    ]:
        assert peer.handle(Gone(head.sender, head), 101.0) == []
    assert peer.phase is Phase.WAITING


def test_r6_an_unreachable_peer_is_not_waited_for() -> None:
    peer = training(of=fork())
    peer.handle(from_b(0, sender="c"), 0.5)
    peer.handle(Trained(0, 1), 1.0)
    assert averaged(peer.handle(Gone("b"), 1.5)).missed == 1
    peer.handle(from_b(1, sender="c"), 1.7)
    assert averaged(peer.handle(Trained(1, 1), 2.0)).waited_s == 0.0


def test_r6_even_if_it_is_known_before_anything_was_sent() -> None:
    peer = training(of=fork())
    peer.handle(Gone("b"), 0.5)
    peer.handle(from_b(0, sender="c"), 0.6)
    assert averaged(peer.handle(Trained(0, 1), 1.0)).missed == 1


def test_r6_a_peer_that_can_reach_nobody_waits_three_deadlines_and_then_goes_on_alone() -> None:
    peer = training()
    peer.handle(Gone("b"), 0.5)
    now = 1.0
    for step in range(3):
        assert of(Averaged, peer.handle(Trained(step, 1), now)) == []
        now += DEADLINE_S
        assert averaged(peer.handle(Tick(), now)).missed == 1
    assert averaged(peer.handle(Trained(3, 1), now)).waited_s == 0.0


def test_r6_a_peer_that_can_reach_nobody_goes_on_with_the_next_topology() -> None:
    peer = training()
    peer.handle(Gone("b"), 0.5)
    peer.handle(Trained(0, 1), 1.0)
    assert peer.phase is Phase.WAITING
    without_b = replace(view(2), members={"a": 1, "c": 1}, trees=({"c": 1},))
    later = replace(without_b, effective_step=2)
    assert averaged(peer.handle(NewView(later), 1.5)).missed == 1  # on the way to step 2
    assert averaged(peer.handle(Trained(1, 1), 2.0)).missed == 1
    peer.handle(Trained(2, 1), 3.0)
    assert peer.phase is Phase.WAITING  # for c
    assert averaged(peer.handle(from_b(2, epoch=2, sender="c"), 3.5)).missed == 0


def test_r6_a_timely_message_brings_the_waiting_back() -> None:
    peer = training(of=fork())
    peer.handle(Gone("b"), 0.5)
    peer.handle(from_b(0, sender="c"), 0.6)
    peer.handle(Trained(0, 1), 1.0)
    peer.handle(from_b(1), 1.5)
    peer.handle(from_b(1, sender="c"), 1.6)
    assert averaged(peer.handle(Trained(1, 1), 2.0)).missed == 0
    peer.handle(Trained(2, 1), 3.0)
    assert peer.phase is Phase.WAITING


def test_r7_two_messages_may_be_under_way() -> None:
    """A newer one cancels the older: not the one before, for which the neighbour may wait."""
    peer = training()
    cancelled = []
    for step in range(4):
        effects = peer.handle(Trained(step, 1), float(step))
        cancelled.append([e.head.step for e in effects if isinstance(e, Cancel)])
        peer.handle(from_b(step), step + 0.5)
    assert cancelled == [[], [], [0], [1]]


def test_r7_an_answer_makes_room() -> None:
    peer = training()
    for step in range(4):
        effects = peer.handle(Trained(step, 1), float(step))
        (send,) = of(Send, effects)
        assert not of(Cancel, effects)
        peer.handle(SendDone("b", send.head, Verdict.ACCEPTED), step + 0.2)
        peer.handle(from_b(step), step + 0.5)


def test_r8_a_new_epoch_clears_slots_and_last_used_steps() -> None:
    peer = training(3)
    peer.handle(from_b(3), 3.5)
    effects = peer.handle(NewView(view(number=2)), 3.6)
    assert Drop(from_b(3).head, DropReason.EPOCH) in effects
    assert peer.admit(from_b(4).head) is Verdict.EPOCH_BEHIND
    assert peer.admit(from_b(3, epoch=2).head) is Verdict.ACCEPTED  # used before, in epoch 1
    peer.handle(Trained(3, 1), 4.0)
    assert averaged(peer.handle(from_b(3, epoch=2), 4.5)).missed == 0


def test_r8_messages_of_the_old_epoch_go_on_to_members() -> None:
    """A neighbour may be at the step before and wait for them."""
    peer = waiting()
    assert of(Cancel, peer.handle(NewView(view(number=2)), 101.0)) == []


def test_r8_messages_to_peers_that_left_are_cancelled() -> None:
    peer = waiting()
    without_b = replace(view(number=2), members={"a": 1, "c": 1}, trees=({"c": 1},))
    effects = peer.handle(NewView(without_b), 101.0)
    assert [cancel.to for cancel in effects if isinstance(cancel, Cancel)] == ["b"]
    assert [send.to for send in effects if isinstance(send, Send)] == ["c"]


def test_r8_a_neighbour_known_to_be_unreachable_stays_so_in_a_new_epoch() -> None:
    """The transport says it once an outage: a new epoch that still has it must not forget it."""
    peer = training(of=fork())
    peer.handle(Gone("b"), 0.2)
    peer.handle(NewView(fork(2)), 0.3)
    peer.handle(from_b(0, epoch=2, sender="c"), 0.5)
    assert averaged(peer.handle(Trained(0, 1), 1.0)).missed == 1
    peer.handle(from_b(1, epoch=2), 1.5)  # it is back
    peer.handle(from_b(1, epoch=2, sender="c"), 1.6)
    peer.handle(Trained(1, 1), 2.0)
    peer.handle(NewView(replace(fork(3), effective_step=2)), 2.1)
    peer.handle(from_b(2, epoch=3, sender="c"), 2.2)
    assert not of(Averaged, peer.handle(Trained(2, 1), 3.0))


def test_r8_the_next_life_of_an_unreachable_neighbour_is_waited_for() -> None:
    peer = training(of=fork())
    peer.handle(Gone("b"), 0.2)
    again = replace(fork(2), members={"a": 1, "b": 2, "c": 1})
    peer.handle(NewView(again), 0.3)
    peer.handle(from_b(0, epoch=2, sender="c"), 0.5)
    assert not of(Averaged, peer.handle(Trained(0, 1), 1.0))


def test_r8_views_take_effect_one_after_the_other() -> None:
    """Who skipped one would be alone in the epoch before it, while the others are in that one."""
    peer = training()
    peer.handle(NewView(view(number=2, effective_step=1)), 0.1)
    peer.handle(NewView(view(number=3, effective_step=3)), 0.2)
    epochs = []
    for step in range(4):
        (send,) = of(Send, peer.handle(Trained(step, 1), float(step)))
        epochs.append(send.head.epoch.number)
        peer.handle(from_b(step, epoch=send.head.epoch.number), step + 0.5)
    assert epochs == [1, 2, 2, 3]


def test_r8_a_view_is_skipped_if_a_later_one_takes_effect_no_later() -> None:
    peer = training()
    peer.handle(NewView(view(number=2, effective_step=3)), 0.1)
    peer.handle(NewView(view(number=3, effective_step=1)), 0.2)
    peer.handle(from_b(0), 0.5)
    peer.handle(Trained(0, 1), 1.0)
    assert peer.view == view(number=3, effective_step=1)


def test_r8_a_neighbour_that_has_gone_on_without_us_is_not_waited_for() -> None:
    """It took up an epoch that we never heard of, on the way to one that we know."""
    peer = waiting()
    sent = replace(from_b(0).head, sender="a")
    peer.handle(NewView(view(number=3, effective_step=2)), 100.1)
    assert averaged(peer.handle(SendDone("b", sent, Verdict.EPOCH_BEHIND), 100.2)).missed == 1
    assert averaged(peer.handle(Trained(1, 1), 101.0)).waited_s == 0.0
    assert not of(Averaged, peer.handle(Trained(2, 1), 102.0))  # in epoch 3 it is


def test_r8_without_a_later_view_it_is_awaited_with_the_neighbours_message() -> None:
    """Else we would run away from the others while it is on its way."""
    peer = waiting()
    sent = replace(from_b(0).head, sender="a")
    assert peer.handle(SendDone("b", sent, Verdict.EPOCH_BEHIND), 100.2) == []
    assert averaged(peer.handle(NewView(view(number=3, effective_step=2)), 100.3)).missed == 1


def test_r8_a_refusal_of_an_epoch_that_is_over_here_too_changes_nothing() -> None:
    peer = waiting(1)
    peer.handle(NewView(view(number=2, effective_step=1)), 100.1)
    peer.handle(NewView(view(number=3, effective_step=4)), 100.2)
    sent = replace(from_b(1).head, sender="a")
    assert peer.handle(SendDone("b", sent, Verdict.EPOCH_BEHIND), 100.3) == []


def of_b(number: int = 1, effective_step: int = 0) -> View:
    """Peer b's part of `view`."""
    return replace(view(number, effective_step), me="b", trees=({"a": 1, "c": 1},))


def farewells(effects: Sequence[Effect], to: str = "a") -> list[Head]:
    return [e.head for e in effects if isinstance(e, Send) and e.to == to and e.head.left]


@pytest.mark.parametrize("overlap", [False, True])
def test_r8_who_starts_over_bids_farewell(overlap: bool) -> None:
    """Peer b goes straight on to epoch 3. Peer a, not as far behind, gets there by epoch 2, which b
    knew of, too."""
    options = Options(overlap=overlap)
    a, b = training(1, options=options), RelaySGD(RUN, options)
    for number, effective_step in ((1, 0), (2, 1)):
        b.handle(NewView(of_b(number, effective_step)), 0.0)
    a.handle(NewView(view(number=2, effective_step=1)), 0.1)
    if overlap:  # a message of an epoch's first step is due in its second
        a.handle(Trained(1, 1), 0.2)
    step = a.step
    assert not of(Averaged, a.handle(Trained(step, 1), 0.3))
    told = farewells(b.farewells())
    assert [head.epoch.number for head in told] == [1, 2]
    for head in told:
        assert a.handle(Gone("b", head), 0.4) == [], "it has no other epoch to go to"
    assert averaged(a.handle(NewView(view(number=3, effective_step=6)), 0.5)).missed == 1
    while a.step < 6:
        assert averaged(a.handle(Trained(a.step, 1), 1.0)).waited_s == 0.0
    assert (a.view or view()).epoch.number == 3


@pytest.mark.parametrize("is_late", [False, True], ids=["held", "not looked at yet"])
def test_r8_so_does_who_was_sent_what_is_of_no_use_any_more(is_late: bool) -> None:
    """Peer b goes on by epoch 2, which a never hears of, with a's message of step 1 in hand."""
    a, b = training(1), RelaySGD(RUN)
    b.handle(NewView(of_b()), 0.0)
    b.handle(Gone("c"), 0.0)
    b.handle(Trained(0, 1), 0.1)
    first = replace(from_b(0).head, sender="a")
    b.handle(Received(first, (Message(first),)), 0.1)
    (sent,) = (send.head for send in a.handle(Trained(1, 1), 0.0) if isinstance(send, Send))
    message = Received(sent, (Message(sent),))
    effects = [] if is_late else b.handle(message, 0.1)
    effects += b.handle(NewView(of_b(2, effective_step=1)), 0.2)
    effects += b.handle(message, 0.3) if is_late else []
    (farewell,) = farewells(effects)
    assert a.admit(farewell) is Verdict.ACCEPTED
    a.handle(NewView(view(number=3, effective_step=4)), 0.4)
    assert averaged(a.handle(Gone("b", farewell), 0.5)).missed == 1


def test_r8_a_farewell_of_another_life_or_epoch_is_none() -> None:
    a = waiting()
    a.handle(NewView(view(number=3, effective_step=4)), 100.1)
    (farewell,) = farewells([training(of=of_b())._farewell(of_b(), "a")])
    for changes in ({"incarnation": 2}, {"epoch": Epoch(1, 3)}, {"sender": "d"}):
        head = replace(farewell, **changes)
        assert a.admit(head) is not Verdict.ACCEPTED
        assert a.handle(Gone(head.sender, head), 100.2) == []
    assert averaged(a.handle(Gone("b", farewell), 100.3)).missed == 1


# --- epochs ---------------------------------------------------------------------------------------


def test_a_view_takes_effect_at_its_step() -> None:
    peer = training(1)
    peer.handle(NewView(view(number=2, effective_step=3)), 1.5)
    epochs = []
    for step in range(1, 5):
        (send,) = of(Send, peer.handle(Trained(step, 1), float(step)))
        epochs.append(send.head.epoch.number)
        peer.handle(from_b(step, epoch=send.head.epoch.number), step + 0.5)
    assert epochs == [1, 1, 2, 2]


def test_a_view_that_comes_after_its_step_takes_effect_at_once() -> None:
    peer = waiting(4)
    effects = peer.handle(NewView(view(number=2, effective_step=2)), 101.0)
    (send,) = of(Send, effects)
    assert (send.head.step, send.head.epoch.number) == (4, 2)
    assert peer.next_deadline() == 101.0 + DEADLINE_S


def test_who_is_not_in_the_next_view_is_not_waited_for() -> None:
    """Even before that view takes effect."""
    peer = waiting()
    without_b = replace(
        view(number=2, effective_step=5), members={"a": 1, "c": 1}, trees=({"c": 1},)
    )
    assert averaged(peer.handle(NewView(without_b), 101.0)).missed == 1


def test_who_was_started_again_is_not_waited_for_in_the_old_epoch() -> None:
    """The earlier life cannot send any more, even if its neighbours never noticed its end."""
    peer = waiting()
    again = replace(view(number=2, effective_step=3), members={"a": 1, "b": 2, "c": 1})
    assert averaged(peer.handle(NewView(again), 101.0)).missed == 1
    assert averaged(peer.handle(Trained(1, 1), 102.0)).waited_s == 0
    assert averaged(peer.handle(Trained(2, 1), 103.0)).waited_s == 0
    assert not of(Averaged, peer.handle(Trained(3, 1), 104.0))


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_view_no_newer_than_a_known_one_is_ignored(number: int) -> None:
    """Also if the known one has not taken effect yet."""
    peer = training()
    peer.handle(NewView(view(number=3, effective_step=1)), 0.1)
    assert peer.handle(NewView(view(number=number)), 0.2) == []
    peer.handle(from_b(0), 0.3)
    peer.handle(Trained(0, 1), 1.0)
    assert peer.view == view(number=3, effective_step=1)


def test_a_newcomer_begins_at_the_views_step() -> None:
    peer = RelaySGD(RUN)
    assert peer.handle(NewView(view(number=4, effective_step=6)), 0.0)[-1] == Train(6)


def test_a_resumed_peer_begins_where_it_stopped() -> None:
    peer = RelaySGD(replace(RUN, start_step=5))
    assert peer.handle(NewView(view(effective_step=3)), 0.0)[-1] == Train(5)


def test_what_was_sent_in_this_epoch_before_this_peer_joined_it_is_late_not_stale() -> None:
    peer = waiting(5)
    peer.handle(NewView(view(number=2, effective_step=3)), 101.0)
    assert peer.admit(from_b(3, epoch=2).head) is Verdict.ACCEPTED
    assert peer.admit(from_b(2, epoch=2).head) is Verdict.STALE_STEP


def test_the_last_step_finishes() -> None:
    peer = training(RUN.total_steps - 1)
    peer.handle(from_b(8), 9.0)
    effects = peer.handle(Trained(8, 1), 9.5)
    assert effects[-1] == Finished(9)
    assert not of(Train, effects)
    assert peer.handle(NewView(view(number=2)), 10.0) == []
    assert peer.next_deadline() is None


# --- overlap --------------------------------------------------------------------------------------


def test_with_overlap_a_message_is_used_one_step_later() -> None:
    peer = training(options=Options(overlap=True))
    first = peer.handle(Trained(0, 1), 1.0)
    assert averaged(first).expected == 0  # nothing was sent before the first step
    assert [send.head.step for send in first if isinstance(send, Send)] == [0]
    assert peer.handle(Trained(1, 1), 2.0) == []
    second = peer.handle(from_b(0), 2.5)
    assert averaged(second).late == 0
    assert [send.head.step for send in second if isinstance(send, Send)] == [1]


def test_with_overlap_a_neighbour_may_be_a_message_ahead() -> None:
    """b needs only a's message of step 0 to send that of step 1, while a still trains step 1."""
    peer = training(options=Options(overlap=True))
    peer.handle(Trained(0, 1), 1.0)
    peer.handle(from_b(0), 1.2)
    assert peer.handle(from_b(1), 1.4) == []
    assert averaged(peer.handle(Trained(1, 1), 2.0)).missed == 0
    assert averaged(peer.handle(Trained(2, 1), 3.0)).missed == 0


# --- the door -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "verdict"),
    [
        (from_b(0).head, Verdict.ACCEPTED),
        (from_b(0, epoch=2).head, Verdict.EPOCH_AHEAD),
        (from_b(0, epoch=0).head, Verdict.EPOCH_BEHIND),
        (replace(from_b(0).head, epoch=Epoch(1, 1, digest=9)), Verdict.EPOCH_BEHIND),
        (replace(from_b(0).head, epoch=Epoch(2, 0)), Verdict.EPOCH_AHEAD),
        (replace(from_b(0).head, sender="z"), Verdict.NOT_A_NEIGHBOUR),
        (from_b(0, kind=Kind.GOSSIP).head, Verdict.NOT_A_NEIGHBOUR),
        (replace(from_b(0).head, incarnation=2), Verdict.OLD_INCARNATION),
    ],
)
def test_messages_are_judged_by_their_header(head: Head, verdict: Verdict) -> None:
    peer = training()
    assert peer.admit(head) is verdict
    if verdict is not Verdict.ACCEPTED:
        dropped, *_ = peer.handle(Received(head, (Message(head),)), 0.5)
        assert isinstance(dropped, Drop)


def test_before_the_first_view_everything_is_ahead() -> None:
    assert RelaySGD(RUN).admit(from_b(0).head) is Verdict.EPOCH_AHEAD


def test_gossip_has_no_use_for_late_messages() -> None:
    peer = D2(RUN)
    peer.handle(NewView(view()), 0.0)
    peer.handle(Trained(0, 1), 1.0)
    peer.handle(Tick(), 1.0 + DEADLINE_S)
    assert peer.admit(from_b(0, kind=Kind.GOSSIP).head) is Verdict.STALE_STEP


def test_what_a_jump_leaves_behind_is_counted() -> None:
    """A gossip message of step 0 that was in when its receiver jumped to step 3."""
    peer = D2(RUN)
    peer.handle(NewView(replace(view(), mixing=dict.fromkeys("abc", 1 / 3))), 0.0)
    early = from_b(0, kind=Kind.GOSSIP)
    peer.handle(early, 0.1)
    head = replace(from_b(3, kind=Kind.GOSSIP).head, sender="c")
    peer.handle(Received(head, (Message(head),)), 0.2)
    peer.handle(Trained(0, 1), 1.0)
    effects = peer.handle(Tick(), 1.0 + DEADLINE_S)
    assert Drop(early.head, DropReason.STALE) in effects
    assert (averaged(effects).step, averaged(effects).missed) == (3, 1)


# --- adapted deadlines ----------------------------------------------------------------------------


def test_the_deadline_follows_the_steps_where_it_may() -> None:
    peer = training(8, run=replace(RUN, total_steps=20, adapt_deadline=True))
    assert peer.patience.deadline_s == DEADLINE_S  # seven steps are measured: of 1 s each
    peer.handle(from_b(8), 8.9)
    peer.handle(Trained(8, 1), 9.0)
    peer.handle(Trained(9, 1), 10.0)
    assert peer.next_deadline() == 16.0
    assert averaged(peer.handle(Tick(), 16.0)).timed_out == 1
    peer.handle(Trained(10, 1), 17.0)
    assert peer.next_deadline() == 17.0 + DEADLINE_S  # doubled, and no longer than that
