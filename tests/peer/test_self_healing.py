"""When a peer takes it that no coordinator leads, and what its healer's thread does then."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from peer.algorithms.core import Epoch, View
from peer.healing import MAX_TAG, Timers
from peer.hellos import Commit, Hello, Seat
from peer.self_healing import Pace, SelfHealing, Surroundings, tag_of

PATIENCE_S = 20.0
LEASE_S = 5.0
ADDRESSES = {"peer-0": "127.0.0.1:1", "peer-1": "127.0.0.1:2"}


class Town:
    """Two peers' healers, which hear each other unless somebody is deaf."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.commits: list[tuple[str, Commit]] = []
        self.said: list[tuple[str, str]] = []
        self.asked: list[str] = []
        self.failures: list[Exception] = []
        self.deaf: set[str] = set()
        self.lost: set[str] = set()  # who cannot reach a neighbour
        self.healers = {peer: self._healer(peer) for peer in ADDRESSES}

    def _healer(self, peer: str) -> SelfHealing:
        town = self

        class Voice:
            def say(self, to: Seat, hello: Hello) -> None:
                town.note(lambda: town.said.append((peer, to.peer)))
                if not town.deaf & {peer, to.peer}:
                    town.healers[to.peer].heard(hello)

            def close(self) -> None:
                pass

        around = Surroundings(
            step=lambda: 5,
            has_lost=lambda: peer in self.lost,
            ask_coordinator=lambda: self.note(lambda: self.asked.append(peer)),
            adopt=lambda commit: self.note(lambda: self.commits.append((peer, commit))),
            failed=lambda error: self.note(lambda: self.failures.append(error)),
        )
        seat = Seat(peer, 1, ADDRESSES[peer])
        return SelfHealing(seat, Timers(0.02, 0.1), LEASE_S, Voice(), around)

    def note(self, what: Callable[[], object]) -> None:
        with self.changed:
            what()
            self.changed.notify_all()

    def wait(self, condition: Callable[[], Any]) -> None:
        with self.changed:
            assert self.changed.wait_for(condition, PATIENCE_S), (self.commits, self.failures)

    def view(self, peer: str, number: int = 1) -> View:
        other = next(p for p in ADDRESSES if p != peer)
        lives = dict.fromkeys(ADDRESSES, 1)
        return View(Epoch(7, number, 0), 0, peer, lives, ({other: 1},), (other,))

    def lead(self, number: int = 1) -> None:
        for peer, healer in self.healers.items():
            healer.viewed(self.view(peer, number), ADDRESSES)


@pytest.fixture
def town() -> Iterator[Town]:
    town = Town()
    with contextlib.ExitStack() as stack:
        for healer in town.healers.values():
            healer.start()
            stack.callback(healer.stop)
        town.lead()
        yield town
    assert town.failures == []


def test_a_short_absence_changes_nothing(town: Town) -> None:
    for healer in town.healers.values():
        healer.away(None)
        healer.away(LEASE_S / 2)
    for healer in town.healers.values():
        healer.stop()  # all that was told is taken in
    assert town.said == []


def test_after_a_lease_a_peer_is_on_its_own(town: Town) -> None:
    town.deaf.add("peer-1")
    town.healers["peer-0"].away(LEASE_S)
    town.wait(lambda: town.commits)
    peer, commit = town.commits[0]
    assert (peer, commit.root, commit.n, commit.step) == ("peer-0", "peer-0", 1, 5)
    assert town.healers["peer-0"].commit == commit


def test_a_lost_neighbour_is_reason_enough(town: Town) -> None:
    town.lost.add("peer-0")
    town.healers["peer-0"].away(0.0)
    town.wait(lambda: town.said)


def test_so_is_the_word_of_the_transport(town: Town) -> None:
    town.healers["peer-0"].away(0.0)
    town.healers["peer-0"].unreachable("peer-1")
    town.wait(lambda: town.said)


def test_a_greeting_is_too_if_the_coordinator_is_away(town: Town) -> None:
    town.healers["peer-1"].away(0.0)
    town.healers["peer-0"].away(LEASE_S)
    town.wait(lambda: {speaker for speaker, _ in town.said} == set(ADDRESSES))


def test_a_greeting_lets_a_peer_look_for_its_coordinator(town: Town) -> None:
    town.healers["peer-1"].away(None)
    town.healers["peer-0"].away(LEASE_S)
    town.wait(lambda: "peer-1" in town.asked)
    assert {speaker for speaker, _ in town.said} == {"peer-0"}


def test_a_view_of_the_coordinator_ends_it(town: Town) -> None:
    town.deaf.add("peer-1")
    healer = town.healers["peer-0"]
    healer.away(LEASE_S)
    town.wait(lambda: town.commits)
    term, number = town.commits[0][1].age
    late = town.view("peer-0", number=3)
    healer.viewed(late, ADDRESSES)  # an older epoch than the tree's: it says nothing new
    healer.away(None)
    town.wait(lambda: len(town.said) > 20)
    assert healer.commit
    newer = View(Epoch(term + 1, 1, 0), 0, "peer-0", late.members, late.trees, late.neighbours)
    healer.viewed(newer, ADDRESSES)
    healer.stop()
    assert healer.commit is None
    assert number >= 2**16


def test_what_goes_wrong_in_the_thread_is_told(town: Town) -> None:
    healer = town.healers["peer-0"]
    healer.unreachable(None)  # type: ignore[arg-type]  # harmless
    healer.heard(None)  # type: ignore[arg-type]
    town.wait(lambda: town.failures)
    assert isinstance(town.failures.pop(), AttributeError)


def test_the_pace_is_that_of_the_last_second() -> None:
    pace = Pace()
    assert pace.at(10, 100.0).rate == 0.0
    assert pace.at(12, 100.5).rate == 0.0
    assert pace.at(30, 102.0).rate == 10.0
    assert pace.at(30, 104.0).rate == 0.0
    assert pace.at(31, 104.0).step == 31


def test_lives_have_tags_of_their_own() -> None:
    tags = {tag_of(Seat(f"peer-{k}", life)) for k in range(50) for life in range(1, 50)}
    assert len(tags) == 50 * 49
    assert all(0 < tag < MAX_TAG for tag in tags)
