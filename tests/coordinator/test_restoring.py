"""A coordinator that comes back, or could not be reached: its peers go on, and it with them."""

from dataclasses import replace

from coordinator.members import (
    FIRST_HEALED_NUMBER,
    LEAP,
    Admitted,
    Elected,
    HealedTree,
    Reason,
    Renew,
    RunState,
    Unknown,
)
from tests.coordinator.swarm import FINGERPRINT, LEASE_S, Swarm, ids, only


def rejoin(swarm: Swarm, peer: str, step: int, age: tuple[int, int] = (7, 5)) -> None:
    assert isinstance(swarm.join(peer, step=step, known_age=age), Admitted)


def test_peers_of_a_coordinator_that_comes_back_go_on_once_all_are_there() -> None:
    swarm = Swarm(number=5, fingerprint=FINGERPRINT)
    for k in range(3):
        rejoin(swarm, f"peer-{k}", step=100)
    assert not [d for d in swarm.settle() if isinstance(d, Elected)]  # at what pace do they go?
    swarm.advance(1.0)
    swarm.renew("peer-0", "peer-1", "peer-2", step=110)
    elected = only(swarm.settle(), Elected)
    assert (elected.term, elected.number, elected.reason) == (7, 6, Reason.RESTORED)
    assert elected.effective_step == 110 + 5 + 1  # 10 steps a second, for the margin's half


HEALED = HealedTree(
    age=(9, 5 * FIRST_HEALED_NUMBER),
    root="peer-0",
    lives=frozenset((f"peer-{k}", 1) for k in range(3)),
    edges=(("peer-0", "peer-2"), ("peer-1", "peer-2")),
    links=(("peer-0", "peer-2"), ("peer-1", "peer-2")),
)


def test_a_coordinator_that_comes_back_goes_on_with_the_tree_that_its_peers_have() -> None:
    swarm = Swarm(number=5, fingerprint=FINGERPRINT)
    for k in range(3):
        swarm.join(f"peer-{k}", step=100, known_age=HEALED.age, tree=HEALED)
    swarm.advance(1.0)
    swarm.renew("peer-0", "peer-1", "peer-2", step=110, tree=HEALED)
    elected = only(swarm.settle(), Elected)
    assert (elected.term, elected.number, elected.reason) == (10, 1, Reason.RESTORED)
    assert elected.tree == HEALED
    swarm.renew("peer-0", "peer-1", "peer-2", step=120, tree=HEALED)  # they have not got it yet
    assert swarm.settle() == []


def test_if_somebody_is_missing_it_makes_a_tree_itself() -> None:
    swarm = Swarm(number=5, fingerprint=FINGERPRINT)
    for k in range(2):
        swarm.join(f"peer-{k}", step=100, known_age=HEALED.age, tree=HEALED)
    swarm.advance(LEASE_S / 2)
    swarm.renew("peer-0", "peer-1")
    elected = only(swarm.advance(LEASE_S / 2), Elected)
    assert (elected.term, elected.number, elected.tree) == (10, 1, None)


def test_one_that_could_not_be_reached_takes_the_lead_again() -> None:
    swarm = Swarm()
    swarm.start()
    swarm.advance(0.5)
    swarm.renew("peer-0", step=9, tree=HEALED)
    elected = only(swarm.settle(), Elected)
    assert (elected.term, elected.number) == (10, 1)
    assert (elected.reason, elected.tree) == (Reason.HEALED, HEALED)


def test_nonsense_of_peers_raises_no_term() -> None:
    swarm = Swarm()
    swarm.start()
    swarm.join("peer-0", known_age=(8 + LEAP, 1))
    swarm.renew("peer-0", tree=replace(HEALED, age=(8 + LEAP, 1)))
    swarm.renew("peer-0", tree=replace(HEALED, age=(6, 2**40)))  # older than ours
    assert swarm.settle() == []
    assert swarm.core.term == 7


def test_after_a_lease_the_run_goes_on_with_those_that_are_back() -> None:
    swarm = Swarm(number=5, fingerprint=FINGERPRINT)
    rejoin(swarm, "peer-0", step=100)
    rejoin(swarm, "peer-1", step=101)
    decisions = swarm.keep(9, "peer-0", "peer-1", step=101)
    elected = only(decisions, Elected)
    assert ids(elected) == ["peer-0", "peer-1"]
    assert elected.effective_step == 102


def test_who_comes_while_the_coordinator_was_away_waits_for_a_donor() -> None:
    """It would train a fresh model at the others' step."""
    swarm = Swarm(number=5, fingerprint=FINGERPRINT)
    assert swarm.join("peer-2").donors == ()
    rejoin(swarm, "peer-0", step=100)
    rejoin(swarm, "peer-1", step=101)
    swarm.advance(1.0)
    swarm.renew("peer-0", "peer-1", "peer-2", step=101)
    elected = only(swarm.settle(), Elected)
    assert ids(elected) == ["peer-0", "peer-1"]
    assert isinstance(swarm.core.handle(Renew("peer-2", 1), swarm.now)[0], Unknown)
    donors = swarm.join("peer-2").donors
    assert [donor.peer_id for donor in donors] == ["peer-0", "peer-1"]


def test_an_epoch_that_a_peer_remembers_is_never_outdone_by_an_older_one() -> None:
    swarm = Swarm(needed=1)
    rejoin(swarm, "peer-0", step=3, age=(9, 4))
    elected = only(swarm.keep(1, "peer-0", step=3), Elected)
    assert (elected.term, elected.number) == (9, 5)


def test_a_nonsensical_epoch_is_not_adopted() -> None:
    swarm = Swarm(needed=1)
    rejoin(swarm, "peer-0", step=3, age=(2**64 - 1, 4))
    elected = only(swarm.keep(1, "peer-0", step=3), Elected)
    assert (elected.term, elected.number) == (7, 1)


def test_peers_that_come_back_and_leave_again_leave_a_run_that_waits() -> None:
    swarm = Swarm(number=5, fingerprint=FINGERPRINT)
    rejoin(swarm, "peer-0", step=100)
    swarm.leave("peer-0")
    swarm.advance(2 * LEASE_S)
    assert swarm.core.state is RunState.WAITING
