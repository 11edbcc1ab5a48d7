"""Who is in the run and when it elects, on a clock that the tests advance."""

from typing import TypeAlias

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.members import (
    Admitted,
    Elected,
    GaveUp,
    Gone,
    Join,
    Leave,
    Reason,
    Refusal,
    Refused,
    Renew,
    Renewed,
    ResumePoint,
    RunFinished,
    RunState,
    Unknown,
    Waiting,
)
from tests.coordinator.swarm import FINGERPRINT, LEASE_S, Swarm, ids, only

Points: TypeAlias = list[tuple[int, int]]


# --- starting ------------------------------------------------------------------------------------


def test_the_run_starts_when_the_last_needed_peer_has_come() -> None:
    swarm = Swarm()
    assert swarm.settle() == [Waiting((), 3)]
    swarm.join("peer-2")
    assert swarm.settle() == [Waiting(("peer-2",), 3)]
    swarm.join("peer-10")
    assert swarm.settle() == [Waiting(("peer-2", "peer-10"), 3)]
    swarm.join("peer-1")
    elected = only(swarm.settle(), Elected)
    assert ids(elected) == ["peer-1", "peer-2", "peer-10"]
    assert (elected.term, elected.number, elected.effective_step) == (7, 1, 0)
    assert elected.reason is Reason.QUORUM
    assert elected.text == "quorum"
    assert swarm.core.state is RunState.RUNNING


def test_a_resumed_swarm_starts_at_the_largest_step_that_joined() -> None:
    swarm = Swarm()
    for peer, step in (("peer-0", 40), ("peer-1", 50), ("peer-2", 45)):
        swarm.join(peer, step=step)
    assert only(swarm.settle(), Elected).effective_step == 50


POINTS = {
    "the last that all have": ([(10, 5), (20, 5)], [(20, 5), (30, 5)], [(20, 5), (10, 5)], 20),
    "none that all have": ([(10, 5)], [(20, 5)], [(10, 5)], None),
    "of other layouts": ([(10, 5), (20, 6)], [(10, 5), (20, 6)], [(10, 5), (20, 6)], 10),
    "one has none": ([(10, 5)], [(10, 5)], [], None),
}


@pytest.mark.parametrize(("a", "b", "c", "expected"), POINTS.values(), ids=POINTS)
def test_a_swarm_that_was_stopped_goes_on_from_the_last_step_that_all_kept(
    a: Points, b: Points, c: Points, expected: int | None
) -> None:
    for deterministic in (True, False):
        swarm = Swarm(deterministic=deterministic)
        for peer, points in (("peer-0", a), ("peer-1", b), ("peer-2", c)):
            kept = frozenset(ResumePoint(*point) for point in points)
            swarm.join(peer, step=33, resume_points=kept)
        elected = only(swarm.settle(), Elected)
        found = expected if deterministic else None
        assert elected.resumes is (found is not None)
        assert elected.effective_step == (33 if found is None else found)


def test_only_a_start_goes_on_from_what_was_kept() -> None:
    """A peer that comes later does not take the others back."""
    swarm = Swarm(deterministic=True)
    swarm.start()
    swarm.keep(3, "peer-0", "peer-1", "peer-2", step=40)
    swarm.join("peer-3", resume_points=frozenset({ResumePoint(10, 5)}))
    elected = only(swarm.settle(), Elected)
    assert not elected.resumes
    assert elected.effective_step > 40


def test_patience_for_the_peers_to_come_ends_once() -> None:
    swarm = Swarm()
    swarm.join("peer-0")
    decisions = swarm.keep(61, "peer-0")
    assert only(decisions, GaveUp) == GaveUp(("peer-0",), 3)
    assert not [d for d in swarm.keep(100, "peer-0") if isinstance(d, GaveUp)]


def test_a_lease_that_ends_before_the_start_elects_nobody() -> None:
    swarm = Swarm()
    swarm.join("peer-0")
    swarm.settle()
    decisions = swarm.advance(LEASE_S)
    assert [d for d in decisions if not isinstance(d, Gone)] == [Waiting((), 3)]
    assert only(decisions, Gone).reason is Reason.LEASE_EXPIRED


# --- candidates ----------------------------------------------------------------------------------


def test_a_candidate_learns_about_the_run_and_is_no_member() -> None:
    swarm = Swarm()
    first = swarm.join(fingerprint=0, address="")
    second = swarm.join(fingerprint=0, address="")
    assert isinstance(first, Admitted)
    assert isinstance(second, Admitted)
    assert first.candidate
    assert (first.member.peer_id, second.member.peer_id) == ("peer-0", "peer-1")
    assert (first.member.shard, second.member.shard) == (0, 1)
    assert swarm.core.present == ()
    member = swarm.join("peer-1")
    assert isinstance(member, Admitted)
    assert (member.candidate, member.member.shard) == (False, 1)
    assert swarm.core.present == ("peer-1",)


def test_a_reservation_ends() -> None:
    swarm = Swarm()
    swarm.join(fingerprint=0, address="")
    swarm.advance(swarm.core.rules.reservation_s)
    assert not swarm.core.candidates
    again = swarm.join(fingerprint=0, address="")
    assert isinstance(again, Admitted)
    assert again.member.peer_id == "peer-0"


def test_a_candidate_may_change_its_mind() -> None:
    swarm = Swarm()
    swarm.join(fingerprint=0, address="")
    assert swarm.leave("peer-0") == []
    assert not swarm.core.candidates


# --- joining while the run goes on ---------------------------------------------------------------


def test_a_newcomer_gets_donors_and_a_new_epoch_with_everyone() -> None:
    swarm = Swarm()
    swarm.start()
    answer = swarm.join("peer-3")
    assert isinstance(answer, Admitted)
    assert sorted(d.address for d in answer.donors) == ["peer-0:1", "peer-1:1", "peer-2:1"]
    elected = only(swarm.settle(), Elected)
    assert ids(elected) == ["peer-0", "peer-1", "peer-2", "peer-3"]
    assert elected.reason is Reason.JOINED
    assert elected.text == "joined peer-3"
    assert elected.number == 2


def test_newcomers_are_spread_over_the_donors() -> None:
    swarm = Swarm(needed=3, shards=6)
    swarm.start()
    first = {swarm.join(f"peer-{k}", fingerprint=0).donors[0].peer_id for k in (3, 4, 5)}
    assert first == {"peer-0", "peer-1", "peer-2"}


def test_there_are_no_donors_before_the_start_and_none_without_a_model() -> None:
    swarm = Swarm(needed=1, shards=6)
    first = swarm.join("peer-0")
    assert isinstance(first, Admitted)
    assert first.donors == ()
    swarm.settle()
    second, third = swarm.join("peer-1"), swarm.join("peer-2")
    assert isinstance(second, Admitted)
    assert isinstance(third, Admitted)
    assert [d.peer_id for d in second.donors] == [d.peer_id for d in third.donors] == ["peer-0"]


def test_joining_twice_changes_nothing() -> None:
    swarm = Swarm()
    swarm.start()
    again = swarm.join("peer-1")
    assert isinstance(again, Admitted)
    assert again.again
    assert swarm.settle() == []


def test_a_later_life_takes_the_place_of_an_earlier_one() -> None:
    swarm = Swarm()
    swarm.start()
    answer = swarm.join("peer-1", incarnation=2, address="elsewhere:1")
    assert isinstance(answer, Admitted)
    assert answer.member.shard == 1
    elected = only(swarm.settle(), Elected)
    assert elected.reason is Reason.RESTARTED
    assert [m.incarnation for m in elected.members] == [1, 2, 1]
    assert isinstance(swarm.core.handle(Renew("peer-1", 1), swarm.now)[0], Unknown)
    refused = swarm.join("peer-1", incarnation=1)
    assert isinstance(refused, Refused)
    assert refused.refusal is Refusal.ID_TAKEN


def test_the_fingerprint_is_the_runs_once_it_has_started() -> None:
    swarm = Swarm()
    swarm.join("peer-0")
    refused = swarm.join("peer-1", fingerprint=2)
    assert isinstance(refused, Refused)
    assert refused.refusal is Refusal.FINGERPRINT
    swarm.leave("peer-0")
    assert isinstance(swarm.join("peer-1", fingerprint=2), Admitted)  # nobody is bound by it yet


def test_a_run_that_has_started_keeps_its_fingerprint() -> None:
    swarm = Swarm(number=3, fingerprint=FINGERPRINT)
    assert isinstance(swarm.join("peer-0", fingerprint=2), Refused)


def test_several_changes_at_one_moment_give_one_epoch() -> None:
    swarm = Swarm(needed=4, shards=8)
    swarm.start()
    swarm.join("peer-4")
    swarm.join("peer-10")
    swarm.leave("peer-1")
    elected = only(swarm.settle(), Elected)
    assert ids(elected) == ["peer-0", "peer-2", "peer-3", "peer-4", "peer-10"]
    assert elected.reason is Reason.LEFT
    assert elected.text == "left peer-1; joined peer-4 peer-10"


# --- losing members ------------------------------------------------------------------------------


def test_a_swarm_of_one_goes_on() -> None:
    swarm = Swarm(needed=2)
    swarm.start()
    swarm.leave("peer-0")
    assert ids(only(swarm.settle(), Elected)) == ["peer-1"]


def test_a_swarm_that_is_lost_altogether_waits_for_all_its_peers_again() -> None:
    swarm = Swarm()
    swarm.start()
    decisions = swarm.advance(LEASE_S)
    assert decisions[-1] == Waiting((), 3)
    for peer in ("peer-0", "peer-1"):
        swarm.join(peer, incarnation=2, step=30)
    assert not [d for d in swarm.settle() if isinstance(d, Elected)]
    swarm.join("peer-2", incarnation=2, step=30)
    elected = only(swarm.settle(), Elected)
    assert (elected.number, elected.effective_step, elected.reason) == (2, 30, Reason.QUORUM)


# --- finishing -----------------------------------------------------------------------------------


def test_finished_members_change_nothing_for_the_others() -> None:
    swarm = Swarm()
    swarm.start()
    (gone,) = swarm.leave("peer-0", finished=True)
    assert isinstance(gone, Gone)
    assert gone.reason is None
    assert swarm.settle() == []
    swarm.leave("peer-1", finished=True)
    assert swarm.settle() == []
    swarm.leave("peer-2", finished=True)
    assert swarm.settle() == [RunFinished()]
    assert swarm.core.state is RunState.FINISHED
    refused = swarm.join("peer-9")
    assert isinstance(refused, Refused)
    assert refused.refusal is Refusal.FINISHED


def test_a_member_that_has_finished_but_still_serves_is_not_elected() -> None:
    swarm = Swarm()
    swarm.start()
    swarm.renew("peer-0", state="finished", step=400)
    assert swarm.settle() == []
    swarm.leave("peer-1")
    assert ids(only(swarm.settle(), Elected)) == ["peer-2"]
    swarm.renew("peer-2", state="finished", step=400)
    swarm.leave("peer-2", finished=True)
    assert swarm.settle() == []
    swarm.leave("peer-0", finished=True)
    assert swarm.settle() == [RunFinished()]


def test_a_peer_lost_last_does_not_keep_the_run_from_finishing() -> None:
    swarm = Swarm(needed=2)
    swarm.start()
    swarm.leave("peer-0", finished=True)
    decisions = swarm.advance(LEASE_S)
    assert decisions[-1] == RunFinished()


def test_nobody_joins_twice_after_finishing() -> None:
    swarm = Swarm()
    swarm.start()
    swarm.leave("peer-0", finished=True)
    refused = swarm.join("peer-0", incarnation=2)
    assert isinstance(refused, Refused)
    assert refused.refusal is Refusal.FINISHED


@pytest.mark.parametrize("state", ["finished", "left"])
def test_nobody_comes_once_others_have_the_common_model(state: str) -> None:
    """Neither a newcomer nor one that was lost: it would make another one of its own."""
    swarm = Swarm(common_model=True)
    swarm.start()
    swarm.keep(10, "peer-0", "peer-1")
    assert ids(swarm.core.current) == ["peer-0", "peer-1"]
    if state == "finished":
        swarm.renew("peer-0", state="finished", step=400)
    else:
        swarm.leave("peer-0", finished=True)
    for late in ("peer-2", "peer-9", ""):
        refused = swarm.join(late, incarnation=2, fingerprint=FINGERPRINT if late else 0)
        assert isinstance(refused, Refused)
        assert refused.refusal is Refusal.FINISHED
        assert "relayswarm pull" in refused.text
    assert isinstance(swarm.join("peer-1"), Admitted)  # in its life of that epoch


def test_who_came_before_and_is_not_in_an_epoch_yet_is_sent_away() -> None:
    swarm = Swarm(common_model=True)
    swarm.start()
    assert isinstance(swarm.join("peer-9"), Admitted)
    swarm.renew("peer-0", state="finished", step=400)
    swarm.leave("peer-1")
    assert ids(only(swarm.settle(), Elected)) == ["peer-2"]
    assert swarm.core.handle(Renew("peer-9", 1), swarm.now) != [Renewed()]


def test_where_each_has_its_own_model_newcomers_may_come_to_the_end() -> None:
    swarm = Swarm()
    swarm.start()
    swarm.leave("peer-0", finished=True)
    assert isinstance(swarm.join("peer-9"), Admitted)


# --- whatever happens ----------------------------------------------------------------------------

PEERS = st.sampled_from([f"peer-{k}" for k in range(5)])
EVENTS = st.one_of(
    st.builds(
        Join,
        incarnation=st.integers(1, 3),
        address=st.sampled_from(["", "a:1", "b:2", "c:3", "d:4", "e:5"]),
        peer_id=st.one_of(st.just(""), PEERS),
        fingerprint=st.sampled_from([0, 1, 1, 1, 2]),
        step=st.integers(0, 9),
        known_age=st.sampled_from([(0, 0), (0, 0), (7, 2), (8, 1)]),
    ),
    st.builds(
        Renew,
        PEERS,
        st.integers(1, 3),
        step=st.integers(0, 9),
        state=st.sampled_from(["training", "training", "finished"]),
        unreachable=st.frozensets(PEERS, max_size=2),
    ),
    st.builds(Leave, PEERS, st.integers(1, 3), finished=st.booleans()),
    st.floats(0.0, 12.0),
)


def test_a_member_that_has_done_all_steps_stays_done() -> None:
    """Else it would be left out of epochs, as done, and yet be waited for."""
    swarm = Swarm(needed=2)
    swarm.start()
    swarm.renew("peer-0", state="finished")
    swarm.renew("peer-0", state="training")
    assert swarm.core.members["peer-0"].done


@given(st.lists(EVENTS, max_size=60), st.integers(1, 3))
def test_invariants_under_any_events(events: list[object], needed: int) -> None:
    swarm = Swarm(needed=needed, shards=3)
    core = swarm.core
    for event in events:
        if isinstance(event, float):
            swarm.advance(event)
        else:
            core.handle(event, swarm.now)
            swarm.settle()
        living = [m for m in core.members.values() if m.expires > swarm.now]
        addresses = [m.address for m in living]
        assert len(set(addresses)) == len(addresses)
        assert all(m.shard < 3 for m in living)
        deadline = core.next_deadline()
        assert deadline is None or deadline > swarm.now  # no tick is wanted without end
        if core.state is RunState.RUNNING and core.current:
            electable = {p for p, m in core.members.items() if not m.done}
            elected = {m.peer_id for m in core.current.members}
            assert electable <= elected  # nobody is left out for longer than a tick
    epochs = [(d.term, d.number) for d in swarm.log if isinstance(d, Elected)]
    assert epochs == sorted(set(epochs))  # never backwards, never twice
    for elected in (d for d in swarm.log if isinstance(d, Elected)):
        assert elected.members
        assert len({m.fingerprint for m in elected.members}) == 1
