"""RelaySGD over fractions, against formulas that share no code with it."""

from __future__ import annotations

import random
from fractions import Fraction as F

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.double_binary_trees import in_order_tree, mirrored_tree
from coordinator.trees import Tree
from peer.algorithms.core import (
    Averaged,
    Drop,
    DropReason,
    Epoch,
    Head,
    Kind,
    Message,
    NewView,
    Received,
    Run,
    Set,
    Train,
    Trained,
    Verdict,
    View,
)
from peer.algorithms.relaysgd import Options, RelaySGD
from peer.simulator.exact import ExactSwarm, Problem, views
from peer.simulator.links import LosingLink, SeededLink
from peer.simulator.world import World
from tests.peer.algorithms.exact_problems import (
    LR,
    by_delays,
    half_step,
    trajectory_of,
    tree_problems,
    vectors,
)

# --- references: quadratics |x - target|^2 / 2 at rate 1/2, in which x_half is half way ----------


def by_the_listing(
    edges: list[tuple[int, int]],
    x: list[F],
    targets: list[F],
    steps: int,
    lost: set[tuple[int, int, int]],
    fallback: str,
) -> list[list[F]]:
    """Algorithm 1 line by line; `lost` holds (step, sender, receiver)."""
    n = len(x)
    around = {i: [b if a == i else a for a, b in edges if i in (a, b)] for i in range(n)}
    m = {(i, j): F(0) for i in range(n) for j in around[i]}
    c = dict.fromkeys(m, 0)
    trajectory = []
    for t in range(steps):
        half = half_step(x, targets)
        sent_m = {(i, j): half[i] + sum(m[k, i] for k in around[i] if k != j) for i, j in m}
        sent_c = {(i, j): 1 + sum(c[k, i] for k in around[i] if k != j) for i, j in c}
        m = {edge: F(0) if (t, *edge) in lost else value for edge, value in sent_m.items()}
        c = {edge: 0 if (t, *edge) in lost else value for edge, value in sent_c.items()}
        new = []
        for i in range(n):
            n_bar = 1 + sum(c[j, i] for j in around[i])
            total = half[i] + sum(m[j, i] for j in around[i])
            printed, eq_1 = total / n_bar, (total + (n - n_bar) * x[i]) / n
            new.append(printed if fallback == "counts" else eq_1)
        x = new
        trajectory.append(x)
    return trajectory


# --- swarms --------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(tree_problems(), st.booleans(), st.integers(0, 2**32))
def test_models_are_averages_of_delayed_models(
    problem: tuple[Tree, list[F], list[F]], overlap: bool, seed: int
) -> None:
    """x_i^(t+1) = 1/n sum_j x_j^(t - tau_ij + 1/2), from the first step on by equation 1.

    However long messages and training take: a delay alone loses nothing.
    """
    tree, starts, targets = problem
    link = SeededLink(seed, delay_s=(0.001, 3.0))
    swarm = ExactSwarm(
        "relaysgd",
        views([tree]),
        Run(total_steps=8, deadline_s=1e6),
        Problem(vectors(starts), vectors(targets), LR),
        options={"overlap": overlap},
        duration_s=lambda i, step: 0.5 + (seed >> (i + step) % 29 & 3),
        world=World(link),
    ).run()
    expected = by_delays(list(tree.edges), starts, targets, 8, overlap=overlap)
    assert trajectory_of(swarm) == expected
    assert all(averaged.missed == 0 for node in swarm.nodes for averaged in node.history)


@settings(max_examples=20)
@given(tree_problems(least=2), st.booleans(), st.integers(0, 2**32))
def test_an_epoch_that_all_adopt_at_its_step_loses_nothing(
    problem: tuple[Tree, list[F], list[F]], overlap: bool, seed: int
) -> None:
    """On a new epoch the relay state starts over, here on another tree, and nothing else does.

    Views come in time but at any time; messages take longer than steps, and cross the change.
    """
    tree, starts, targets = problem
    draw = random.Random(seed)
    swarm = ExactSwarm(
        "relaysgd",
        views([tree]),
        Run(total_steps=9, deadline_s=1e6),
        Problem(vectors(starts), vectors(targets), LR),
        options={"overlap": overlap},
        duration_s=lambda i, step: 0.5 + (seed >> (i + step) % 29 & 3),
        world=World(SeededLink(seed, delay_s=(0.001, 3.0))),
    )
    order = draw.sample(range(tree.n), tree.n)
    other = [(order[u], order[v]) for u, v in tree.edges]
    for view in views([Tree(tree.n, tuple(other))], epoch=Epoch(1, 2), effective_step=4):
        swarm.world.at(draw.uniform(0.0, 1.9), lambda view=view: swarm.world.publish([view]))
    swarm.run()
    before = by_delays(list(tree.edges), starts, targets, 4, overlap=overlap)
    after = by_delays(other, before[-1], targets, 5, overlap=overlap)
    assert trajectory_of(swarm) == before + after


@settings(max_examples=30)
@given(tree_problems(), st.sampled_from(["previous", "counts"]), st.data())
def test_with_known_losses_the_listing_holds(
    problem: tuple[Tree, list[F], list[F]], fallback: str, data: st.DataObject
) -> None:
    """Lost messages count neither now nor in what is relayed next; both fallbacks."""
    tree, starts, targets = problem
    directed = [*tree.edges, *((v, u) for u, v in tree.edges)]
    messages = [(t, *edge) for t in range(7) for edge in directed]
    lost = data.draw(st.sets(st.sampled_from(messages))) if messages else set()

    def loses(sender: str, to: str, head: Head) -> bool:
        return (head.step, int(sender[5:]), int(to[5:])) in lost

    swarm = ExactSwarm(
        "relaysgd",
        views([tree]),
        Run(total_steps=7),
        Problem(vectors(starts), vectors(targets), LR),
        options={"fallback": fallback},
        world=World(LosingLink(loses)),
    ).run()
    expected = by_the_listing(list(tree.edges), starts, targets, 7, lost, fallback)
    assert trajectory_of(swarm) == expected


@pytest.mark.parametrize("n", [2, 3, 4, 5, 8, 9])
def test_two_trees_carry_half_the_coordinates_each(n: int) -> None:
    """The first half of the flat vector travels on tree A, the second on tree B: 3 = 2 + 1."""
    edges = [in_order_tree(n), mirrored_tree(n)]
    starts = [[F(i * k % 5) for i in range(n)] for k in (1, 2, 3)]
    targets = [[F(7 * i * k % 11) for i in range(n)] for k in (1, 2, 3)]
    swarm = ExactSwarm(
        "relaysgd",
        views([Tree(n, tuple(tree)) for tree in edges]),
        Run(total_steps=8),
        Problem(list(zip(*starts, strict=True)), list(zip(*targets, strict=True)), LR),
    ).run()
    for k, tree in enumerate([0, 0, 1]):
        expected = by_delays(edges[tree], starts[k], targets[k], 8)
        assert trajectory_of(swarm, k) == expected


def test_two_peers_are_exact_all_reduce() -> None:
    """Two peers are exact all-reduce."""
    swarm = ExactSwarm(
        "relaysgd",
        views([Tree(2, ((0, 1),))]),
        Run(total_steps=3),
        Problem(vectors([F(0), F(4)]), vectors([F(2), F(-2)]), LR),
    ).run()
    # Half steps 1 and 1, mean 1. Then 3/2 and -1/2, mean 1/2. Then 5/4 and -3/4, mean 1/4.
    assert trajectory_of(swarm) == [[1, 1], [F(1, 2)] * 2, [F(1, 4)] * 2]


def test_a_chain_of_three_by_hand() -> None:
    """All start at 0; targets 8, 0, 16; rate 1/2, so x_half is half way to the target.

    t=0  halves 4, 0, 8. Everyone hears the direct neighbours only (counts 2, 3, 2):
         x_0 = (4 + 0 + 1 * 0) / 3 = 4/3    x_1 = (0 + 4 + 8) / 3 = 4    x_2 = (8 + 0 + 0) / 3 = 8/3
    t=1  halves (4/3 + 8)/2 = 14/3, 4/2 = 2, (8/3 + 16)/2 = 28/3. Peer 1 relays what came at t=0:
         8 to peer 0, 4 to peer 2; counts are 3 from here on.
         x_0 = (14/3 + 2 + 8) / 3 = 44/9    x_1 = (2 + 14/3 + 28/3) / 3 = 16/3
         x_2 = (28/3 + 2 + 4) / 3 = 46/9
    t=2  halves (44/9 + 8)/2 = 58/9, 8/3, (46/9 + 16)/2 = 95/9; peer 1 relays 28/3 and 14/3.
         x_0 = (58/9 + 8/3 + 28/3) / 3 = 166/27    x_1 = (8/3 + 58/9 + 95/9) / 3 = 59/9
         x_2 = (95/9 + 8/3 + 14/3) / 3 = 161/27
    """
    swarm = ExactSwarm(
        "relaysgd",
        views([Tree(3, ((0, 1), (1, 2)))]),
        Run(total_steps=3),
        Problem(vectors([F(0)] * 3), vectors([F(8), F(0), F(16)]), LR),
    ).run()
    assert trajectory_of(swarm) == [
        [F(4, 3), F(4), F(8, 3)],
        [F(44, 9), F(16, 3), F(46, 9)],
        [F(166, 27), F(59, 9), F(161, 27)],
    ]
    assert [[a.counted for a in node.history] for node in swarm.nodes] == [
        [2, 3, 3],
        [3, 3, 3],
        [2, 3, 3],
    ]


def test_the_rate_is_scaled_once_sums_are_complete() -> None:
    """The factor applies after the first diameter steps of each epoch."""
    scales: list[object] = []
    peer = RelaySGD(Run(total_steps=4))
    (view,) = views([Tree(1, ())], lr_scale=F(3, 2))
    view = View(**{name: getattr(view, name) for name in view.__slots__} | {"diameter": 2})
    effects = peer.handle(NewView(view), 0.0)
    while trains := [effect for effect in effects if isinstance(effect, Train)]:
        scales.append(trains[0].lr_scale)
        effects = peer.handle(Trained(trains[0].step, 1), 0.0)
    assert scales == [1, 1, F(3, 2), F(3, 2)]


# --- what it refuses ------------------------------------------------------------------------------


def chain_view(behind: int = 2) -> View:
    """Of peer a in the chain a - b - c."""
    members = {"a": 1, "b": 1, "c": 1}
    return View(Epoch(1, 1), 0, "a", members, trees=({"b": behind},))


def relay(count: int, sender: str = "b", tree: int = 0) -> Head:
    return Head(sender, 1, Epoch(1, 1), step=0, kind=Kind.RELAY, tree=tree, count=count)


@pytest.mark.parametrize(
    ("head", "verdict"),
    [
        (relay(1), Verdict.ACCEPTED),
        (relay(2), Verdict.ACCEPTED),
        (relay(0), Verdict.BAD_COUNT),
        (relay(3), Verdict.BAD_COUNT),
        (relay(1, sender="c"), Verdict.NOT_A_NEIGHBOUR),
        (relay(1, tree=1), Verdict.NOT_A_NEIGHBOUR),
        (relay(1, sender="z"), Verdict.NOT_A_NEIGHBOUR),
    ],
)
def test_a_count_is_between_one_and_the_peers_behind_the_edge(head: Head, verdict: Verdict) -> None:
    peer = RelaySGD(Run(total_steps=2))
    peer.handle(NewView(chain_view()), 0.0)
    assert peer.admit(head) is verdict


def test_counts_above_n_abandon_the_round() -> None:
    """Only a wrong view lets such counts in: the peer then trusts nothing of what came."""
    peer = RelaySGD(Run(total_steps=2), Options())
    peer.handle(NewView(chain_view(behind=5)), 0.0)
    peer.handle(Trained(0, 1), 1.0)
    head = relay(3)
    effects = peer.handle(Received(head, (Message(head),)), 1.5)
    assert Drop(head, DropReason.COUNT) in effects
    assert not any(isinstance(e, Set) and e.reg.name == "x" for e in effects)
    (averaged,) = (effect for effect in effects if isinstance(effect, Averaged))
    assert averaged.counted == 1


def test_only_fallback_previous_needs_a_register() -> None:
    assert list(RelaySGD(Run(1)).registers) == ["previous"]
    assert list(RelaySGD(Run(1), Options(fallback="counts")).registers) == []
