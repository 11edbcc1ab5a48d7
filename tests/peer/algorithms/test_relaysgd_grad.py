"""RelaySGD/Grad over fractions, against the listing and against delays."""

from __future__ import annotations

from fractions import Fraction as F

import networkx as nx
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.double_binary_trees import in_order_tree, mirrored_tree
from coordinator.trees import Tree
from peer.algorithms.core import (
    Drop,
    DropReason,
    Epoch,
    Head,
    Kind,
    Lin,
    Message,
    NewView,
    Received,
    Reg,
    Run,
    Set,
    Trained,
    View,
)
from peer.algorithms.relaysgd_grad import RelaySGDGrad
from peer.simulator.exact import ExactSwarm, Problem, views
from peer.simulator.links import LosingLink, SeededLink
from peer.simulator.world import World
from tests.peer.algorithms.exact_problems import LR, trajectory_of, tree_problems, vectors

STEPS = 7

Losses = frozenset[tuple[int, int, int]]  # (step, sender, receiver)


def updates(x: list[F], targets: list[F]) -> list[F]:
    return [LR * (target - x_i) for x_i, target in zip(x, targets, strict=True)]


def by_the_listing(tree: Tree, x: list[F], targets: list[F], lost: Losses) -> list[list[F]]:
    """Algorithm 6 line by line."""
    m = {(i, j): F(0) for i in range(tree.n) for j in tree.neighbours[i]}
    trajectory = []
    for t in range(STEPS):
        u = updates(x, targets)
        sent = {
            (i, j): u[i] + sum((m[k, i] for k in tree.neighbours[i] if k != j), F(0)) for i, j in m
        }
        m = {edge: F(0) if (t, *edge) in lost else value for edge, value in sent.items()}
        x = [
            x[i] + (u[i] + sum((m[j, i] for j in tree.neighbours[i]), F(0))) / tree.n
            for i in range(tree.n)
        ]
        trajectory.append(x)
    return trajectory


def by_delays(tree: Tree, x: list[F], targets: list[F], *, overlap: bool) -> list[list[F]]:
    """x_i^(t+1) = x_i^(t) + 1/n sum_j u_j^(t - delay_ij)."""
    graph = nx.Graph(list(tree.edges))
    graph.add_nodes_from(range(tree.n))
    hops = dict(nx.all_pairs_shortest_path_length(graph))
    history, trajectory = [], []
    for t in range(STEPS):
        history.append(updates(x, targets))
        new = []
        for i in range(tree.n):
            delays = [hops[i][j] if overlap else max(hops[i][j] - 1, 0) for j in range(tree.n)]
            came = [history[t - delay][j] for j, delay in enumerate(delays) if delay <= t]
            new.append(x[i] + sum(came) / tree.n)
        x = new
        trajectory.append(x)
    return trajectory


@settings(max_examples=20)
@given(tree_problems(), st.booleans(), st.integers(0, 2**32))
def test_updates_arrive_after_their_delay(
    problem: tuple[Tree, list[F], list[F]], overlap: bool, seed: int
) -> None:
    """However long messages take: "distributes each update uniformly over all workers in a finite
    number of steps"."""
    tree, starts, targets = problem
    swarm = ExactSwarm(
        "relaysgd-grad",
        views([tree]),
        Run(STEPS, deadline_s=1e6),
        Problem(vectors(starts), vectors(targets), LR),
        options={"overlap": overlap},
        world=World(SeededLink(seed, delay_s=(0.001, 3.0))),
    ).run()
    assert trajectory_of(swarm) == by_delays(tree, starts, targets, overlap=overlap)
    assert all(getattr(peer, "updates_lost", None) == 0 for peer in swarm.algorithms)


@settings(max_examples=20)
@given(tree_problems(), st.data())
def test_with_known_losses_the_listing_holds(
    problem: tuple[Tree, list[F], list[F]], data: st.DataObject
) -> None:
    """A lost update stays lost, and is counted once a later message is used."""
    tree, starts, targets = problem
    directed = [*tree.edges, *((v, u) for u, v in tree.edges)]
    messages = [(t, *edge) for t in range(STEPS - 1) for edge in directed]
    lost = data.draw(st.frozensets(st.sampled_from(messages))) if messages else frozenset()

    def loses(sender: str, to: str, head: Head) -> bool:
        return (head.step, int(sender[5:]), int(to[5:])) in lost

    swarm = ExactSwarm(
        "relaysgd-grad",
        views([tree]),
        Run(STEPS),
        Problem(vectors(starts), vectors(targets), LR),
        world=World(LosingLink(loses)),
    ).run()
    assert trajectory_of(swarm) == by_the_listing(tree, starts, targets, lost)
    for i, peer in enumerate(swarm.algorithms):
        assert isinstance(peer, RelaySGDGrad)
        mine = [sender for _, sender, receiver in lost if receiver == i]
        assert peer.updates_lost == sum(tree.behind(i)[j] for j in mine)


def test_two_trees_carry_half_the_coordinates_each() -> None:
    trees = [Tree(5, tuple(edges)) for edges in (in_order_tree(5), mirrored_tree(5))]
    starts = [[F(i * k % 5) for i in range(5)] for k in (1, 2, 3)]
    targets = [[F(7 * i * k % 11) for i in range(5)] for k in (1, 2, 3)]
    swarm = ExactSwarm(
        "relaysgd-grad",
        views(trees),
        Run(STEPS),
        Problem(list(zip(*starts, strict=True)), list(zip(*targets, strict=True)), LR),
    ).run()
    for k, tree in enumerate([0, 0, 1]):
        expected = by_delays(trees[tree], starts[k], targets[k], overlap=False)
        assert trajectory_of(swarm, k) == expected


def test_buffers_are_averaged_like_models() -> None:
    """Coordinate 1 stands for one, which training moves half way to its target. Peers 0 and 2 of
    the chain hear of peer 1 alone at first: the mean is then of two, and not a third too small."""
    tree = Tree(3, ((0, 1), (1, 2)))
    swarm = ExactSwarm(
        "relaysgd-grad",
        views([tree]),
        Run(2),
        Problem([(F(0), F(6))] * 3, [(F(8), F(k)) for k in (0, 6, 12)], parameters_end=1),
    ).run()
    first, second = trajectory_of(swarm, k=1)
    assert first == [F(3 + 6, 2), F(3 + 6 + 9, 3), F(6 + 9, 2)]
    halves = [first[0] / 2, (first[1] + 6) / 2, (first[2] + 12) / 2]
    assert second[0] == (halves[0] + halves[1] + 9) / 3  # peer 2's was relayed from step 0
    assert trajectory_of(swarm, k=0)[1] == by_delays(tree, [F(0)] * 3, [F(8)] * 3, overlap=False)[1]


def test_a_chain_of_three_by_hand() -> None:
    """All start at 0; targets 6, 0, 12; rate 1/2. t=0: u = 3, 0, 6; the ends hear peer 1 alone.

    x = (3 + 0)/3 = 1, (0 + 3 + 6)/3 = 3, (6 + 0)/3 = 2.
    t=1: u = 5/2, -3/2, 5; peer 1 relays 6 to peer 0 and 3 to peer 2:
    x_0 = 1 + (5/2 - 3/2 + 6)/3 = 10/3, x_1 = 3 + (-3/2 + 5/2 + 5)/3 = 5,
    x_2 = 2 + (5 - 3/2 + 3)/3 = 25/6.
    """
    swarm = ExactSwarm(
        "relaysgd-grad",
        views([Tree(3, ((0, 1), (1, 2)))]),
        Run(2),
        Problem(vectors([F(0)] * 3), vectors([F(6), F(0), F(12)]), LR),
    ).run()
    assert trajectory_of(swarm) == [[1, 3, 2], [F(10, 3), 5, F(25, 6)]]


def test_a_peer_that_jumps_ahead_counts_what_it_skips() -> None:
    """It holds the messages of steps 3 and 4 when it has trained step 0: 0 to 3 are lost."""
    members = {"a": 1, "b": 1, "c": 1}
    peer = RelaySGDGrad(Run(total_steps=9))
    peer.handle(NewView(View(Epoch(1, 1), 0, "a", members, trees=({"b": 2},))), 0.0)
    for step in (3, 4):
        head = Head("b", 1, Epoch(1, 1), step, Kind.RELAY, count=2)
        peer.handle(Received(head, (Message(head),)), 0.5)
    peer.handle(Trained(0, 1), 1.0)
    assert peer.step == 5
    assert peer.updates_lost == 4 * 2


def test_counts_above_n_abandon_the_round() -> None:
    """The own update counts 1/n, as always: nothing of what came is trusted."""
    peer = RelaySGDGrad(Run(total_steps=2))
    members = {"a": 1, "b": 1, "c": 1}
    peer.handle(NewView(View(Epoch(1, 1), 0, "a", members, trees=({"b": 5},))), 0.0)
    peer.handle(Trained(0, 1), 1.0)
    head = Head("b", 1, Epoch(1, 1), 0, Kind.RELAY, count=3)
    effects = peer.handle(Received(head, (Message(head),)), 1.5)
    x, previous = Reg("x"), Reg("previous")
    assert effects[:4] == [
        Drop(head, DropReason.COUNT),
        Set(x, Lin(((1, x), (-1, previous))), 0),
        Set(previous, Lin(((3, previous), (-2, x)), 3), 0),
        Set(x, Lin(((1, x), (1, previous))), 0),
    ]
