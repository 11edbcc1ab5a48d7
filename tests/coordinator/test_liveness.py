"""Losing members: leases, silence and the word of neighbours, on a clock that the tests advance."""

from coordinator.members import (
    Admitted,
    Decision,
    Elected,
    Gone,
    Reason,
    Renew,
    Tick,
    Unknown,
)
from tests.coordinator.swarm import LEASE_S, Swarm, ids, only


def test_a_lease_runs_out_at_its_time_and_not_before() -> None:
    swarm = Swarm()
    swarm.start()
    decisions = swarm.keep(8, "peer-0", "peer-2")
    assert not decisions
    decisions = swarm.keep(1, "peer-0", "peer-2")
    assert only(decisions, Gone).reason is Reason.LEASE_EXPIRED
    elected = only(decisions, Elected)
    assert ids(elected) == ["peer-0", "peer-2"]
    assert elected.reason is Reason.LEASE_EXPIRED


def test_two_leases_that_end_together_give_one_epoch() -> None:
    swarm = Swarm()
    swarm.start()
    decisions = swarm.keep(9, "peer-1")
    assert len([d for d in decisions if isinstance(d, Gone)]) == 2
    assert ids(only(decisions, Elected)) == ["peer-1"]


def test_a_member_lost_has_to_join_again() -> None:
    swarm = Swarm()
    swarm.start()
    swarm.keep(9, "peer-0", "peer-2")
    (unknown,) = swarm.core.handle(Renew("peer-1", 1), swarm.now)
    assert isinstance(unknown, Unknown)
    assert "join again" in unknown.text
    assert isinstance(swarm.join("peer-1"), Admitted)
    assert ids(only(swarm.settle(), Elected)) == ["peer-0", "peer-1", "peer-2"]


def test_a_renewal_that_comes_late_but_before_the_tick_counts() -> None:
    swarm = Swarm()
    swarm.start()
    swarm.now += LEASE_S + 1
    swarm.renew("peer-0", "peer-1", "peer-2")
    assert swarm.settle() == []


def test_leases_do_not_run_while_the_coordinator_sleeps() -> None:
    swarm = Swarm()
    swarm.start()
    swarm.now += 100.0
    deadline = swarm.core.next_deadline()
    assert deadline == 100.0 + LEASE_S
    assert swarm.core.handle(Tick(swarm.now - deadline), swarm.now) == []
    assert swarm.advance(0.9) == []  # time to renew
    assert len([d for d in swarm.advance(0.1) if isinstance(d, Gone)]) == 3


CHAIN = {"peer-0": [{"peer-1"}], "peer-1": [{"peer-0", "peer-2"}], "peer-2": [{"peer-1"}]}


def reported(swarm: Swarm, seconds: int, *reporters: str, others: tuple[str, ...] = ()) -> object:
    decisions: list[Decision] = []
    for _ in range(seconds):
        decisions += swarm.advance(1.0)
        swarm.renew(*reporters, unreachable=frozenset({"peer-1"}))
        swarm.renew(*others)
    return decisions + swarm.settle()


def test_a_silent_peer_that_all_neighbours_call_unreachable_is_given_up_early() -> None:
    swarm = Swarm()
    swarm.start()
    swarm.core.published(CHAIN)
    assert reported(swarm, 2, "peer-0", "peer-2") == []
    decisions = reported(swarm, 1, "peer-0", "peer-2")
    assert only(decisions, Gone).reason is Reason.UNREACHABLE
    assert only(decisions, Elected).text == "unreachable peer-1"


def test_one_neighbour_that_reaches_it_vouches_for_it() -> None:
    swarm = Swarm()
    swarm.start()
    swarm.core.published(CHAIN)
    assert reported(swarm, 8, "peer-0", others=("peer-2",)) == []
    assert only(reported(swarm, 1, "peer-0", others=("peer-2",)), Gone).reason is (
        Reason.LEASE_EXPIRED
    )


def test_a_peer_that_renews_is_never_given_up_on_hearsay() -> None:
    swarm = Swarm()
    swarm.start()
    swarm.core.published(CHAIN)
    assert reported(swarm, 20, "peer-0", "peer-2", others=("peer-1",)) == []


def test_either_the_tree_or_the_graph_may_tell() -> None:
    swarm = Swarm()
    swarm.start()
    swarm.core.published({"peer-1": [{"peer-0"}, {"peer-0", "peer-2"}]})
    decisions = reported(swarm, 3, "peer-0", others=("peer-2",))
    assert only(decisions, Gone).reason is Reason.UNREACHABLE


def test_two_dead_neighbours_do_not_vouch_for_each_other() -> None:
    swarm = Swarm(needed=4, shards=4)
    swarm.start()
    swarm.core.published({"peer-1": [{"peer-0", "peer-2"}], "peer-2": [{"peer-1", "peer-3"}]})
    swarm.advance(0.5)
    swarm.renew("peer-1")
    swarm.advance(0.3)
    swarm.renew("peer-2")
    decisions: list[Decision] = []
    for _ in range(4):
        decisions += swarm.advance(1.0)
        swarm.renew("peer-0", unreachable=frozenset({"peer-1"}))
        swarm.renew("peer-3", unreachable=frozenset({"peer-2"}))
    decisions += swarm.settle()
    gone = [(d.member.peer_id, d.reason) for d in decisions if isinstance(d, Gone)]
    assert gone == [("peer-2", Reason.UNREACHABLE), ("peer-1", Reason.UNREACHABLE)]
