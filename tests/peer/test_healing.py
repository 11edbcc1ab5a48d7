"""Trees without a coordinator: they stand again, and never are there two under one number."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from typing import Any

import pytest

from coordinator.members import FIRST_HEALED_NUMBER, LEAP
from peer.healing import (
    MAX_STEP,
    Adopt,
    Effect,
    Event,
    Healer,
    Heard,
    Led,
    Paced,
    Say,
    Tick,
    Unreachable,
)
from peer.hellos import Commit, Seat
from tests.peer.healing_trials import (
    crash_and_lose,
    crash_two,
    part_and_heal,
    random_faults,
)
from tests.peer.healing_worlds import (
    TIMERS,
    Adversary,
    Pairs,
    TwoTreesError,
    World,
    name,
    own_tag,
    viewed,
)
from tests.shapes import connected_shapes

RING: Pairs = [(0, 1), (1, 2), (2, 3), (3, 0)]
CHAIN: Pairs = [(0, 1), (1, 2), (2, 3)]
UP_TO_4 = [(n, graph) for n in (2, 3, 4) for graph in connected_shapes(n)]


# --- what happens ---------------------------------------------------------------------------------


def test_a_tree_that_stands_is_kept() -> None:
    world = World(4, RING)
    world.run(30)
    assert world.adopted == []


@pytest.mark.parametrize("graph", [RING, CHAIN])
@pytest.mark.parametrize("dead", range(4))
def test_the_survivors_commit_one_tree(graph: Pairs, dead: int) -> None:
    """On a chain, too, whose halves have no link left: they find each other by probes."""
    world = World(4, graph)
    world.at(0.5, lambda: world.crash(dead))
    world.run(30)
    world.assert_one_tree(world.living())
    commits = {commit for _, _, commit in world.adopted}
    assert len(commits) == 1
    (commit,) = commits
    root = min(world.living())
    assert (commit.root, commit.n) == (name(root), 3)
    assert commit.age == (8, own_tag(root, 0) * FIRST_HEALED_NUMBER)
    # silence is noticed after max_age, a dead root's word lasts as long; then all has to stand,
    # and once more if the halves had to find each other
    assert max(when for when, _, _ in world.adopted) < 4 * TIMERS.max_age_s


def test_it_takes_effect_when_the_furthest_can_have_heard_of_it() -> None:
    world = World(4, RING)
    world.at(0.5, lambda: world.crash(2))
    world.run(30)
    when, _, commit = world.adopted[0]
    assert 10 * when - 11 <= commit.step <= 10 * when
    last = max(when for when, _, _ in world.adopted)
    assert commit.effective_step > 10 * last


def test_the_word_of_the_transport_saves_the_wait() -> None:
    world = World(4, RING)
    world.at(0.5, lambda: world.crash(3))
    for k in (0, 2):
        world.at(0.5, lambda k=k: world.feed(k, Unreachable(name(3))))  # type: ignore[misc]
    world.run(30)
    assert max(when for when, _, _ in world.adopted) < TIMERS.max_age_s + 2 * TIMERS.hello_s


def test_after_a_partition_the_lower_root_wins_with_the_largest_term_plus_one() -> None:
    world = World(5, [(0, 1), (1, 2), (2, 3), (3, 4)])
    world.part({3, 4})
    world.run(20)
    apart = [world.peers[k].held for k in range(5)]  # type: ignore[union-attr]
    assert apart[0] == apart[1] == apart[2] == (8, 1 * FIRST_HEALED_NUMBER)
    assert apart[3] == apart[4] == (8, 4 * FIRST_HEALED_NUMBER)
    world.part(())
    world.run(40)
    world.assert_one_tree(range(5))
    _, _, commit = world.adopted[-1]
    assert (commit.age[0], commit.root, commit.n) == (9, "peer-0", 5)
    assert commit.effective_step > commit.step >= 200  # the largest of either side


def test_that_is_so_too_where_the_lower_root_had_the_larger_term() -> None:
    world = World(4, CHAIN)
    world.part({3})
    world.run(12)
    for k in (0, 1, 2):  # a coordinator that only these can reach, for a while
        world.lead([k], (20, 2))
        world.leave(k)
    world.at(13, lambda: world.crash(2))
    world.run(40)
    assert world.peers[0].held == (21, 1 * FIRST_HEALED_NUMBER)  # type: ignore[union-attr]
    world.part(())
    world.run(70)
    world.assert_one_tree([0, 1, 3])
    assert world.adopted[-1][2].age == (22, 1 * FIRST_HEALED_NUMBER)


def test_a_link_that_works_one_way_is_none() -> None:
    world = World(4, RING)
    world.one_way = frozenset({(0, 1)})
    world.run(30)
    world.assert_one_tree(range(4))
    _, _, commit = world.adopted[-1]
    assert commit.tree == (("peer-0", "peer-3"), ("peer-1", "peer-2"), ("peer-2", "peer-3"))


def test_a_root_goes_on_counting_in_its_own_term() -> None:
    world = World(4, RING)
    for when, k in ((0.5, 3), (15.0, 2)):
        world.at(when, lambda k=k: world.crash(k))  # type: ignore[misc]
    world.run(30)
    ages = sorted(world.registry.trees)
    assert ages == [(8, FIRST_HEALED_NUMBER), (8, FIRST_HEALED_NUMBER + 1)]


def test_with_a_coordinator_all_are_silent() -> None:
    world = World(4, RING)
    world.at(0.5, lambda: world.crash(3))
    world.at(20, lambda: world.lead(range(3), (9, 1)))
    world.run(20.5)
    said = world.messages
    assert [world.peers[k].held for k in range(3)] == [(9, 1)] * 3  # type: ignore[union-attr]
    world.run(60)
    assert world.messages == said
    for k in range(3):
        assert world.peers[k].next_deadline() is None  # type: ignore[union-attr]


# --- faults, each at every place ------------------------------------------------------------------


@pytest.mark.parametrize(("n", "graph"), UP_TO_4)
def test_any_crash_and_any_lost_message(n: int, graph: Pairs) -> None:
    """A slice; `make model-check` tries every message and up to five bridges."""
    for dead in range(n):
        crash_and_lose(n, graph, dead, every=41)


@pytest.mark.parametrize(("n", "graph"), [(n, graph) for n, graph in UP_TO_4 if n > 2][::3])
def test_any_two_crashes(n: int, graph: Pairs) -> None:
    for pair in itertools.permutations(range(n), 2):
        for later_s in (0.0, 6.2):
            crash_two(n, graph, pair, later_s)


@pytest.mark.parametrize(("n", "graph"), UP_TO_4[1::3])
def test_any_partition(n: int, graph: Pairs) -> None:
    for size in range(1, n // 2 + 1):
        for side in itertools.combinations(range(n), size):
            part_and_heal(n, graph, side)


@pytest.mark.parametrize("seed", range(10))
def test_faults_of_all_kinds(seed: int) -> None:
    """Loss, delay and reordering, crashes, partitions, coordinators that come and go."""
    random_faults(seed)


# --- never two trees under one number -------------------------------------------------------------


@pytest.mark.parametrize(("n", "graph"), [(2, [(0, 1)]), (3, [(0, 1), (1, 2), (2, 0)])])
def test_whatever_an_adversary_does(n: int, graph: Pairs) -> None:
    adversary = Adversary(n, graph)
    assert adversary.explore(2500) >= 2500
    assert adversary.registry.trees


@pytest.mark.parametrize("n", [3, 4, 5])
def test_wherever_an_adversary_goes(n: int) -> None:
    trees = 0
    for graph in connected_shapes(n)[::4]:
        adversary = Adversary(n, graph, losses=30, crashes=2)
        adversary.walk(random.Random(len(graph)), 250)
        trees += len(adversary.registry.trees)
    assert trees > n


def test_the_adversary_finds_two_trees_where_roots_have_the_same_numbers() -> None:
    adversary = Adversary(3, [(0, 1), (1, 2), (2, 0)], tags=lambda *_: 1)
    with pytest.raises(TwoTreesError):
        adversary.explore(2500)


# --- who is listened to ---------------------------------------------------------------------------


def alone(me: int = 0, incarnation: int = 5) -> Healer:
    """A healer of three peers on a ring that has just lost its coordinator."""
    seats = [Seat(name(k), incarnation) for k in range(3)]
    healer = Healer(seats[me], own_tag(me, 0), TIMERS)
    healer.handle(viewed(me, (7, 1), seats, [(0, 1), (1, 2), (2, 0)]), 0.0)
    healer.handle(Led(False), 0.0)
    return healer


def greeting(healer: Healer, now: float) -> Heard:
    """What it says to peer-0 then."""
    said = [e for e in healer.handle(Tick(), now) if isinstance(e, Say) and e.to.peer == name(0)]
    return Heard(said[0].hello)


def heard(said: list[Effect], by: str, **changes: Any) -> list[Event]:
    """What that peer hears of it."""
    hellos = [e.hello for e in said if isinstance(e, Say) and e.to.peer == by]
    return [Heard(replace(hello, **changes)) for hello in hellos]


def test_only_known_peers_in_their_present_life_are_heard() -> None:
    healer = alone()
    healer.handle(greeting(alone(1, incarnation=4), 1.0), 1.0)
    stranger = Healer(Seat("mallory", 5), 99, TIMERS)
    stranger.handle(viewed(1, (7, 1), [Seat(name(0), 5), Seat("mallory", 5)], [(0, 1)]), 0.0)
    stranger.handle(Led(False), 0.0)
    healer.handle(greeting(stranger, 1.0), 1.0)
    healer.handle(greeting(alone(2), 1.0), 1.0)
    healer.handle(Tick(), 1.0)
    assert healer.hears == {name(2)}


def test_who_has_a_new_view_of_the_coordinator_falls_silent() -> None:
    """A root that did not have it yet would commit a tree to go beyond what it heard of."""
    healer = alone()
    healer.handle(greeting(alone(1), 1.0), 1.0)
    seats = [Seat(name(k), 5) for k in range(3)]
    graph = [(0, 1), (1, 2), (2, 0)]
    assert healer.handle(viewed(0, (7, 1), seats, graph), 1.1 + TIMERS.hello_s), "it is no news"
    assert healer.handle(viewed(0, (8, 1), seats, graph), 1.2 + 2 * TIMERS.hello_s) == []
    assert (healer.held, healer.next_deadline()) == ((8, 1), None)


def test_what_comes_late_or_twice_changes_nothing() -> None:
    healer, other = alone(), alone(1)
    first, second = greeting(other, 1.0), greeting(other, 2.5)
    healer.handle(second, 2.6)
    assert healer.handle(first, 2.65) == []
    healer.handle(second, 3.0)
    healer.handle(Tick(), 2.6 + TIMERS.max_age_s)
    assert healer.hears == frozenset()


def test_who_knows_of_a_term_that_nobody_can_have_reached_is_not_heard() -> None:
    """It would leave no terms for those that come after it."""
    hello = greeting(alone(2), 1.0).hello
    for largest, heard in (((7 + LEAP, 1), True), ((8 + LEAP, 1), False)):
        healer = alone()
        healer.handle(Heard(replace(hello, largest=largest)), 1.0)
        assert healer.hears == ({name(2)} if heard else frozenset())
    seats = (Seat(name(0), 5), Seat(name(2), 5))
    edges = ((name(0), name(2)),)
    commit = Commit((8 + LEAP, 1), name(0), seats, edges, edges, 0, 0)
    healer = alone()
    healer.handle(Heard(replace(hello, commit=commit)), 1.0)
    assert healer.hears == frozenset()


def test_nobody_is_believed_to_be_faster_than_any_peer_or_further_than_a_number() -> None:
    """A root that did could not say when its tree takes effect."""
    root, child = alone(0), alone(2)
    commits: list[Commit] = []
    for k in range(1, 20):
        now = k * TIMERS.hello_s / 2
        to_root: list[Event] = [Tick()]
        to_child: list[Event] = [Tick()]
        while to_root or to_child:
            said = [e for event in to_root for e in root.handle(event, now)]
            commits += [effect.commit for effect in said if isinstance(effect, Adopt)]
            answers = [e for event in to_child for e in child.handle(event, now)]
            to_child = heard(said, name(2))
            to_root = heard(answers, name(0), step=MAX_STEP - 10, rate=1.7e308)
    assert [(commit.n, commit.effective_step) for commit in commits] == [(2, MAX_STEP)]


def test_a_peer_alone_is_a_swarm_of_one() -> None:
    world = World(2, [(0, 1)])
    world.at(0.0, lambda: world.crash(0))
    world.at(0.0, lambda: world.feed(1, Paced(41, 0.0)))
    world.run(10)
    world.assert_one_tree([1])
    assert world.adopted[0][2].tree == ()
