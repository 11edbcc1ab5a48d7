"""All-reduce over fractions: exact means, or rounds that all who know of it skip."""

from __future__ import annotations

import random
from dataclasses import replace
from fractions import Fraction as F

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.double_binary_trees import in_order_tree, mirrored_tree
from coordinator.trees import Tree
from peer.algorithms.allreduce import AllReduce
from peer.algorithms.core import (
    Epoch,
    Gone,
    Head,
    Kind,
    Message,
    NewView,
    Received,
    Run,
    Send,
    Set,
    Tick,
    Trained,
    Verdict,
    View,
)
from peer.simulator.exact import ExactSwarm, Problem, views
from peer.simulator.links import LosingLink, SeededLink
from peer.simulator.world import World
from tests.peer.algorithms.exact_problems import LR, trajectory_of, tree_problems, vectors

STEPS = 6


def skipped(swarm: ExactSwarm) -> list[int]:
    return [peer.skipped for peer in swarm.algorithms if isinstance(peer, AllReduce)]


# --- references -----------------------------------------------------------------------------------


def toward_the_root(tree: Tree) -> dict[int, int]:
    """Each peer's parent: the centroid is where the largest part that is left without it is least;
    of two the lower."""
    graph = nx.Graph(list(tree.edges))
    graph.add_nodes_from(range(tree.n))

    def largest_part(i: int) -> int:
        rest = graph.subgraph(set(graph) - {i})
        return max(map(len, nx.connected_components(rest)), default=0)

    root = min(range(tree.n), key=lambda i: (largest_part(i), i))
    return {child: parent for parent, child in nx.bfs_edges(graph, root)}


def by_rounds(
    tree: Tree, x: list[F], targets: list[F], lost: set[tuple[int, int, int]]
) -> tuple[list[list[F]], list[int]]:
    """A loss on the way up spoils the round for all; one on the way down for all below it."""
    parents, trajectory, skips = toward_the_root(tree), [], [0] * tree.n
    for t in range(STEPS):
        half = [x_i + LR * (target - x_i) for x_i, target in zip(x, targets, strict=True)]
        mean, new = sum(half) / tree.n, []
        spoilt = any((t, child, parent) in lost for child, parent in parents.items())
        for i in range(tree.n):
            above, misses = i, spoilt
            while above in parents:
                misses = misses or (t, parents[above], above) in lost
                above = parents[above]
            new.append(half[i] if misses else mean)
            skips[i] += misses
        x = new
        trajectory.append(x)
    return trajectory, skips


# --- swarms ---------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(st.sampled_from(["allreduce", "local-sgd"]), tree_problems(), st.integers(0, 2**32))
def test_every_model_is_the_mean_of_all_however_long_messages_take(
    name: str, problem: tuple[Tree, list[F], list[F]], seed: int
) -> None:
    tree, starts, targets = problem
    swarm = ExactSwarm(
        name,
        views([tree]),
        Run(STEPS, deadline_s=1e6),
        Problem(vectors(starts), vectors(targets), LR),
        duration_s=lambda i, step: 0.5 + (seed >> (i + step) % 29 & 3),
        world=World(SeededLink(seed, delay_s=(0.001, 3.0))),
    ).run()
    assert trajectory_of(swarm) == by_rounds(tree, starts, targets, set())[0]
    assert {a.counted for node in swarm.nodes for a in node.history} == {tree.n}
    assert skipped(swarm) == [0] * tree.n


@settings(max_examples=30)
@given(tree_problems(), st.data())
def test_rounds_with_known_losses_are_skipped_by_all_who_know(
    problem: tuple[Tree, list[F], list[F]], data: st.DataObject
) -> None:
    tree, starts, targets = problem
    directed = [*tree.edges, *((v, u) for u, v in tree.edges)]
    messages = st.sampled_from([(t, *e) for t in range(STEPS) for e in directed] or [(0, 0, 0)])
    lost = data.draw(st.sets(messages, max_size=6))

    def loses(sender: str, to: str, head: Head) -> bool:
        return (head.step, int(sender[5:]), int(to[5:])) in lost

    swarm = ExactSwarm(
        "allreduce",
        views([tree]),
        Run(STEPS, deadline_s=1e6),
        Problem(vectors(starts), vectors(targets), LR),
        world=World(LosingLink(loses)),
    ).run()
    expected, skips = by_rounds(tree, starts, targets, lost)
    assert trajectory_of(swarm) == expected
    assert skipped(swarm) == skips


@pytest.mark.parametrize("n", [2, 3, 5, 8])
def test_two_trees_carry_half_the_coordinates_each(n: int) -> None:
    """With roots of their own: a peer may be above another in one tree and below it in the other.
    Peer 0's half of tree 1 is lost in step 2, on its way to its parent there."""
    trees = [Tree(n, tuple(edges)) for edges in (in_order_tree(n), mirrored_tree(n))]
    parents = toward_the_root(trees[1])
    child = next(iter(parents))
    link = LosingLink(
        lambda sender, to, head: (
            (sender, to, head.tree, head.step) == (f"peer-{child}", f"peer-{parents[child]}", 1, 2)
        )
    )
    starts = [[F(i * k % 5) for i in range(n)] for k in (1, 2, 3)]
    targets = [[F(7 * i * k % 11) for i in range(n)] for k in (1, 2, 3)]
    swarm = ExactSwarm(
        "allreduce",
        views(trees),
        Run(STEPS),
        Problem(list(zip(*starts, strict=True)), list(zip(*targets, strict=True)), LR),
        world=World(link),
    ).run()
    lost = [set(), set(), {(2, child, parents[child])}]
    for k, tree in enumerate([0, 0, 1]):
        expected, _ = by_rounds(trees[tree], starts[k], targets[k], lost[k])
        assert trajectory_of(swarm, k) == expected
    assert skipped(swarm) == [1] * n


@settings(max_examples=20)
@given(tree_problems(), st.integers(0, 2**32), st.booleans(), st.booleans())
def test_no_fault_hangs_a_swarm(
    problem: tuple[Tree, list[F], list[F]], seed: int, known: bool, ordered: bool
) -> None:
    """Delays beyond deadlines, losses, duplicates, overtaking; weights always sum to one."""
    tree, _, _ = problem
    draw = random.Random(seed)
    link = SeededLink(seed, (0.001, 3.0), drop=0.2, known=known, duplicate=0.2)
    swarm = ExactSwarm(
        "allreduce",
        views([tree]),
        Run(STEPS, deadline_s=2.0),
        Problem([(F(1),)] * tree.n, [(F(1),)] * tree.n),
        duration_s=lambda i, step: draw.choice([0.1, 1.0, 5.0]),  # noqa: ARG005
        world=World(link, cancels=ordered, ordered=ordered),
    ).run()
    assert {x[0] for models in swarm.models for x in models} == {F(1)}
    assert {len(models) for models in swarm.models} <= set(range(1, STEPS + 1))


def test_a_dead_leaf_costs_its_parent_three_deadlines_and_nobody_more() -> None:
    """In the chain 0 - ... - 4 peer 4 is dead. All others hear of each round's end from peer 3."""
    deadline_s, steps, n = 5.0, 20, 5
    link = LosingLink(lambda sender, to, _: "peer-4" in (sender, to), known=False)
    swarm = ExactSwarm(
        "allreduce",
        views([Tree(n, tuple((i, i + 1) for i in range(n - 1)))]),
        Run(steps, deadline_s=deadline_s),
        Problem([(F(0),)] * n, [(F(1),)] * n),
        world=World(link),
    ).run()
    living = swarm.nodes[:4]
    assert max(node.finished_at or 0.0 for node in living) < steps * 1.01 + 3 * deadline_s
    assert [len(node.history) for node in living] == [steps] * 4
    assert skipped(swarm)[:4] == [steps] * 4
    assert all(a.waited_s < 0.1 for node in living for a in node.history[3:])


@pytest.mark.parametrize("hangs_s", [4.3, 20.0, 60.7])
@pytest.mark.parametrize("peer", range(5))
def test_a_peer_that_hung_joins_again(peer: int, hangs_s: float) -> None:
    """In a chain of five with its root in the middle: rounds are skipped meanwhile, and complete
    again once it is back, although all others keep their pace."""
    n, steps = 5, 80
    swarm = ExactSwarm(
        "allreduce",
        views([Tree(n, tuple((i, i + 1) for i in range(n - 1)))]),
        Run(steps, deadline_s=0.5),
        Problem([(F(0),)] * n, [(F(1),)] * n),
        duration_s=lambda i, step: hangs_s if (i, step) == (peer, 3) else 1.0,
    ).run()
    counted = [[a.counted for a in node.history] for node in swarm.nodes]
    assert any(1 in counts for counts in counted)
    for counts in counted:
        assert counts[:3] == [n] * 3
        assert counts[-3:] == [n] * 3


# --- one peer -------------------------------------------------------------------------------------

MEMBERS = dict.fromkeys("abcde", 1)


def view(me: str, around: dict[str, int], diameter: int = 3) -> View:
    return View(Epoch(1, 1), 0, me, MEMBERS, trees=(around,), diameter=diameter)


def waiting(me: str, around: dict[str, int]) -> AllReduce:
    peer = AllReduce(Run(total_steps=9, deadline_s=10.0))
    peer.handle(NewView(view(me, around)), 0.0)
    peer.handle(Trained(0, 1), 1.0)
    return peer


def head(sender: str, count: int, step: int = 0, **fields: object) -> Head:
    made = Head(sender, 1, Epoch(1, 1), step, Kind.RELAY, count=count)
    return replace(made, **fields)  # type: ignore[arg-type]


def whole(message: Head) -> Received:
    return Received(message, (Message(message),))


@pytest.mark.parametrize(
    ("message", "verdict"),
    [
        (head("d", 2), Verdict.ACCEPTED),
        (head("d", 1), Verdict.BAD_COUNT),
        (head("b", 5), Verdict.ACCEPTED),
        (head("b", 2), Verdict.BAD_COUNT),
        (head("b", 0, lost=True), Verdict.ACCEPTED),
        (head("e", 1), Verdict.NOT_A_NEIGHBOUR),
        (head("d", 2, tree=1), Verdict.NOT_A_NEIGHBOUR),
    ],
)
def test_sums_are_whole_and_means_of_all(message: Head, verdict: Verdict) -> None:
    """Peer c has its parent b on one side (3 peers), its child d on the other; a hangs from b."""
    members = dict.fromkeys("abcdef", 1)
    peer = AllReduce(Run(total_steps=9))
    around = {"b": 3, "d": 2}
    message = replace(message, count=6) if message.count == 5 else message
    peer.handle(NewView(View(Epoch(1, 1), 0, "c", members, trees=(around,), diameter=5)), 0.0)
    assert peer.admit(message) is verdict


def test_of_two_centroids_the_lower_is_the_root() -> None:
    two = {"a": 1, "b": 1}
    for me, other, sends in [("a", "b", []), ("b", "a", ["a"])]:
        peer = AllReduce(Run(1))
        peer.handle(NewView(View(Epoch(1, 1), 0, me, two, trees=({other: 1},), diameter=1)), 0.0)
        effects = peer.handle(Trained(0, 1), 1.0)
        assert [effect.to for effect in effects if isinstance(effect, Send)] == sends


def test_who_waits_for_a_leaf_gives_up_before_those_who_wait_for_the_root() -> None:
    """In the chain a - b - c - d - e the root is c."""
    assert waiting("b", {"a": 1, "c": 3}).next_deadline() == 1.0 + 10.0
    assert waiting("c", {"b": 2, "d": 2}).next_deadline() == 1.0 + 2 * 10.0
    assert waiting("a", {"b": 4}).next_deadline() == 1.0 + 4 * 10.0


def test_who_misses_a_child_announces_it_up_and_then_down() -> None:
    peer = waiting("b", {"a": 1, "c": 3})
    effects = peer.handle(Tick(), 11.0)
    assert [(e.to, e.head.lost, e.lins) for e in effects if isinstance(e, Send)] == [
        ("c", True, ())
    ]
    assert peer.next_deadline() == 1.0 + 4 * 10.0
    effects = peer.handle(Gone("c", head("c", 0, lost=True)), 12.0)
    assert [(e.to, e.head.lost) for e in effects if isinstance(e, Send)] == [("a", True)]
    assert not any(isinstance(effect, Set) for effect in effects)
    assert peer.skipped == 1


def test_a_peer_whose_parent_has_closed_rounds_without_it_joins_the_next() -> None:
    peer = AllReduce(Run(total_steps=9))
    peer.handle(NewView(view("a", {"b": 4})), 0.0)
    peer.handle(Gone("b", head("b", 0, step=4, lost=True)), 0.5)
    (up,) = (e for e in peer.handle(Trained(0, 1), 1.0) if isinstance(e, Send))
    assert up.head.step == peer.step == 5
    peer.handle(whole(head("b", 5, step=8)), 1.5)  # the last round is over, too: nothing is left
    peer.handle(Trained(6, 1), 2.0)
    assert peer.step == 9
