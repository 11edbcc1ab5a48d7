"""The last round over fractions: whoever dies in it, and whenever, no two peers end with different
means that both are called common."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction as F

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from coordinator.double_binary_trees import in_order_tree, mirrored_tree
from coordinator.trees import Tree
from peer.algorithms import build
from peer.algorithms.common_model import CommonModel
from peer.algorithms.core import LIVE, Epoch, NewView, PeerId, Run
from peer.algorithms.synchronous import Synchronous
from peer.simulator.exact import ExactBody, ExactVectors, Vector, views
from peer.simulator.links import SeededLink
from peer.simulator.world import Link, Node, World, perfect_link

DEADLINE_S = 10.0
LEASE_S = 2.0
LATEST_S = 3000.0
CHAIN_3 = (Tree(3, ((0, 1), (1, 2))),)
CHAIN_5 = (Tree(5, ((0, 1), (1, 2), (2, 3), (3, 4))),)
STAR_4 = (Tree(4, ((0, 1), (0, 2), (0, 3))),)
TREE_5 = (Tree(5, ((0, 1), (0, 2), (2, 3), (2, 4))),)
TWO_TREES_4 = tuple(Tree(4, tuple(make(4))) for make in (in_order_tree, mirrored_tree))
WORLDS = {
    "chain of 3": CHAIN_3,
    "chain of 5": CHAIN_5,
    "star of 4": STAR_4,
    "tree of 5": TREE_5,
    "two trees of 4": TWO_TREES_4,
}


class Counting(World):
    """Calls `at_arrival` before each message arrives, with how many have."""

    at_arrival: Callable[[int], None] = staticmethod(lambda count: None)  # noqa: ARG005
    count = 0

    def _arrive(self, flight) -> None:  # type: ignore[no-untyped-def]
        self.at_arrival(self.count)
        self.count += 1
        super()._arrive(flight)


@dataclass
class Ending:
    """A swarm in its last round, and a coordinator that gives the dead up after a lease.

    `knows_finished` says whether it knows at once who has finished, and leaves them out of new
    epochs, or never; what a dead peer had sent is lost with it if `loses` says so.
    """

    trees: Sequence[Tree]
    link: Link = perfect_link
    knows_finished: bool = True
    loses: bool = False

    def __post_init__(self) -> None:
        self.world = Counting(self.link, reachable=self._reachable)
        self.number = 0
        self.members = [f"peer-{k}" for k in range(self.trees[0].n)]
        self.lives = dict.fromkeys(self.members, 1)
        self.dead: set[PeerId] = set()
        self.past: list[Node] = []  # earlier lives
        for k, peer in enumerate(self.members):
            self.add(peer, k)
        self.publish(self.trees)

    def _reachable(self, sender: PeerId, to: PeerId) -> bool:  # noqa: ARG002
        return not (self.loses and sender in self.dead)

    def add(self, peer: PeerId, k: int) -> None:
        run = Run(0, deadline_s=DEADLINE_S)
        method = build("relaysgd", {}, run)
        assert isinstance(method, Synchronous)
        x: Vector = (F(2**k), F(3**k))
        vectors = ExactVectors(x, method.registers)
        self.world.add(peer, CommonModel(method, run), ExactBody(vectors, x, 1))

    def publish(self, trees: Sequence[Tree]) -> None:
        """An epoch of `members`, in these trees."""
        self.number += 1
        epoch, lives = Epoch(1, self.number), [self.lives[peer] for peer in self.members]
        for view in views(trees, epoch=epoch, name=lambda k: self.members[k]):
            members = dict(zip(self.members, lives, strict=True))
            self.world.nodes[view.me].feed(NewView(replace(view, members=members)))

    def elect(self, *, without: Collection[PeerId] = ()) -> None:
        """Of those who are left, in a chain; nobody new once somebody is known to have finished."""
        eligible = self.members if self.done else self.world.nodes
        living = [peer for peer in eligible if self.world.nodes[peer].alive]
        self.members = [peer for peer in living if peer not in {*without, *self.done}]
        n = len(self.members)
        if n:
            tree = Tree(n, tuple((k, k + 1) for k in range(n - 1)))
            self.publish([tree] * len(self.trees))

    def come_back(self, peer: PeerId) -> None:
        """A new life with a model of its own, if it is let in."""
        if peer in self.dead and not self.done:
            self.dead.discard(peer)
            self.lives[peer] += 1
            self.add(peer, int(peer.removeprefix("peer-")))
            self.elect()

    @property
    def done(self) -> set[PeerId]:
        """Who is known to have finished."""
        done = {p for p, node in self.world.nodes.items() if node.finished_at is not None}
        return done if self.knows_finished else set()

    def kill(self, peer: PeerId) -> None:
        if self.world.nodes[peer].finished_at is None:
            self.past.append(self.world.nodes[peer])
            self.dead.add(peer)
            self.world.crash(peer)
            self.world.at(self.world.now + LEASE_S, self.elect)

    def run(self) -> Ending:
        """Until all who live have finished, and nobody is still to be given up."""
        self.world.run(lambda: self.world.now > LATEST_S or self._is_over)
        return self

    @property
    def _is_over(self) -> bool:
        return all(node.finished_at is not None for node in self.living)

    # --- what came of it ---------------------------------------------------------------------

    @property
    def living(self) -> list[Node]:
        return [node for node in self.world.nodes.values() if node.alive]

    def common(self) -> Iterator[tuple[Epoch, Vector]]:
        """The means that peers call common, whether or not these have died since."""
        for node in self.lived:
            if (mean := core(node).common) is not None:
                yield mean.epoch, vector(node)

    @property
    def lived(self) -> list[Node]:
        """All lives of all peers."""
        return [*self.past, *(node for node in self.world.nodes.values() if node.alive)]

    def require_agreement(self) -> None:
        """All who call a mean common call the same so, and it is the mean of those it names."""
        assert len(set(self.common())) <= 1
        for node in self.lived:
            if (mean := core(node).common) is not None:
                places = [int(peer.removeprefix("peer-")) for peer in mean.members]
                expected = [F(sum(base**k for k in places), len(places)) for base in (2, 3)]
                assert vector(node) == tuple(expected)

    def require_success(self, deadlines: float) -> None:
        """Besides all who live end in it, soon."""
        self.require_agreement()
        assert [node.peer for node in self.living if core(node).common is None] == []
        for node in self.living:
            assert node.finished_at is not None
            assert node.finished_at <= deadlines * DEADLINE_S


def core(node: Node) -> CommonModel:
    assert isinstance(node.algorithm, CommonModel)
    return node.algorithm


def vector(node: Node) -> Vector:
    found = node.body.vectors
    assert isinstance(found, ExactVectors)
    return found[LIVE]


def arrivals(trees: Sequence[Tree]) -> int:
    """How many messages a last round takes in which nothing happens."""
    return Ending(trees).run().world.count


@pytest.mark.parametrize("name", WORLDS)
def test_with_nobody_dying_it_takes_four_messages_an_edge(name: str) -> None:
    trees = WORLDS[name]
    ending = Ending(trees).run()
    ending.require_success(0.01)
    edges = trees[0].n - 1
    assert ending.world.count == edges * (2 * len(trees) + 2)


@pytest.mark.parametrize("loses", [False, True])
@pytest.mark.parametrize("name", WORLDS)
def test_whoever_dies_whenever_the_others_end_in_one_model(name: str, loses: bool) -> None:
    """One lease and a moment later, and not by waiting in vain."""
    trees = WORLDS[name]
    for victim, moment in itertools.product(range(trees[0].n), range(arrivals(trees) + 1)):
        ending = Ending(trees, loses=loses)

        def at_arrival(
            count: int, ending: Ending = ending, victim: int = victim, moment: int = moment
        ) -> None:
            if count == moment:
                ending.kill(f"peer-{victim}")

        ending.world.at_arrival = at_arrival
        ending.run().require_success((LEASE_S + 1) / DEADLINE_S)


EVENTS = {
    "dies": lambda ending, peer: ending.kill(peer),
    "comes back": lambda ending, peer: ending.come_back(peer),
    "is taken for dead": lambda ending, peer: ending.elect(without={peer}),
    "is found again": lambda ending, peer: ending.elect(),  # noqa: ARG005
}


@settings(max_examples=150, deadline=None)
@example(  # of two means that meet the older one is still on its way
    trees=TWO_TREES_4,
    happenings=[(7, "is taken for dead", 0), (18, "is found again", 0)],
    knows_finished=False,
    loses=False,
    seed=243999378,
)
@example(  # a half is sent again when the other one has come
    trees=TWO_TREES_4, happenings=[], knows_finished=False, loses=False, seed=6484
)
@given(
    trees=st.sampled_from([CHAIN_3, CHAIN_5, STAR_4, TREE_5, TWO_TREES_4]),
    happenings=st.lists(
        st.tuples(st.integers(0, 60), st.sampled_from([*EVENTS]), st.integers(0, 4)), max_size=5
    ),
    knows_finished=st.booleans(),
    loses=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_no_two_peers_ever_call_different_means_common(
    trees: Sequence[Tree],
    happenings: list[tuple[int, str, int]],
    knows_finished: bool,
    loses: bool,
    seed: int,
) -> None:
    """Whatever happens on the way, of whatever the coordinator knows, and in whatever order
    messages come. And nobody waits for ever."""
    link = SeededLink(seed, delay_s=(0.001, 3.0), drop=0.1, known=False)
    ending = Ending(trees, link, knows_finished, loses)

    def at_arrival(count: int) -> None:
        for moment, what, peer in happenings:
            if count == moment and peer < trees[0].n:
                EVENTS[what](ending, f"peer-{peer}")

    ending.world.at_arrival = at_arrival
    ending.run().require_agreement()
    for node in ending.living:
        assert node.finished_at is not None
