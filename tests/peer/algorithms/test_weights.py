"""Peers that do not weigh the same, over fractions, against formulas that share no code with it."""

from __future__ import annotations

from fractions import Fraction as F
from math import inf, nan

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.double_binary_trees import in_order_tree, mirrored_tree
from coordinator.trees import Tree
from peer.algorithms import build
from peer.algorithms.allreduce import AllReduce
from peer.algorithms.core import (
    Epoch,
    Finished,
    Gone,
    Head,
    Kind,
    Lin,
    Message,
    NewView,
    Observe,
    Received,
    Run,
    Send,
    Set,
    Tick,
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


def by_the_listing(
    edges: list[tuple[int, int]],
    x: list[F],
    targets: list[F],
    weights: list[F],
    steps: int,
    lost: set[tuple[int, int, int]],
    fallback: str,
) -> list[list[F]]:
    """Algorithm 1 with weights, line by line; `lost` holds (step, sender, receiver)."""
    n, total_weight = len(x), sum(weights)
    around = {i: [b if a == i else a for a, b in edges if i in (a, b)] for i in range(n)}
    m = {(i, j): F(0) for i in range(n) for j in around[i]}
    w = dict.fromkeys(m, F(0))
    trajectory = []
    for t in range(steps):
        half = half_step(x, targets)
        sent_m = {
            (i, j): weights[i] * half[i] + sum(m[k, i] for k in around[i] if k != j) for i, j in m
        }
        sent_w = {(i, j): weights[i] + sum(w[k, i] for k in around[i] if k != j) for i, j in w}
        m = {edge: F(0) if (t, *edge) in lost else value for edge, value in sent_m.items()}
        w = {edge: F(0) if (t, *edge) in lost else value for edge, value in sent_w.items()}
        new = []
        for i in range(n):
            w_bar = weights[i] + sum(w[j, i] for j in around[i])
            total = weights[i] * half[i] + sum(m[j, i] for j in around[i])
            if fallback == "counts":
                new.append(total / w_bar if w_bar else half[i])
            elif total_weight:
                new.append((total + (total_weight - w_bar) * x[i]) / total_weight)
            else:
                new.append(half[i])
        x = new
        trajectory.append(x)
    return trajectory


@st.composite
def problems(draw: st.DrawFn, least: int = 0) -> tuple[Tree, list[F], list[F], list[F]]:
    """A tree, starts, targets and weights of at least `least`, one of them above 0."""
    tree, starts, targets = draw(tree_problems(most=7))
    weights = st.lists(st.integers(least, 9), min_size=tree.n, max_size=tree.n).filter(any)
    return tree, starts, targets, [F(w) for w in draw(weights)]


@settings(max_examples=30)
@given(problems(), st.booleans(), st.integers(0, 2**32))
def test_models_are_weighted_averages_of_delayed_models(
    problem: tuple[Tree, list[F], list[F], list[F]], overlap: bool, seed: int
) -> None:
    tree, starts, targets, weights = problem
    swarm = ExactSwarm(
        "relaysgd",
        views([tree], peer_weights=weights),
        Run(total_steps=8, deadline_s=1e6),
        Problem(vectors(starts), vectors(targets), LR),
        options={"overlap": overlap},
        world=World(SeededLink(seed, delay_s=(0.001, 3.0))),
    ).run()
    expected = by_delays(tree.edges, starts, targets, 8, weights=weights, overlap=overlap)
    assert trajectory_of(swarm) == expected


@settings(max_examples=40)
@given(problems(), st.sampled_from(["previous", "counts"]), st.data())
def test_with_losses_the_listing_holds_and_no_sum_weighs_more_than_is_behind_its_edge(
    problem: tuple[Tree, list[F], list[F], list[F]], fallback: str, data: st.DataObject
) -> None:
    tree, starts, targets, weights = problem
    directed = [*tree.edges, *((v, u) for u, v in tree.edges)]
    messages = [(t, *edge) for t in range(7) for edge in directed]
    lost = data.draw(st.sets(st.sampled_from(messages))) if messages else set()
    heads: list[tuple[Head, int, int]] = []

    def loses(sender: str, to: str, head: Head) -> bool:
        edge = int(sender[5:]), int(to[5:])
        heads.append((head, *edge))
        return (head.step, *edge) in lost

    swarm = ExactSwarm(
        "relaysgd",
        views([tree], peer_weights=weights),
        Run(total_steps=7),
        Problem(vectors(starts), vectors(targets), LR),
        options={"fallback": fallback},
        world=World(LosingLink(loses)),
    ).run()
    expected = by_the_listing(list(tree.edges), starts, targets, weights, 7, lost, fallback)
    assert trajectory_of(swarm) == expected
    for head, sender, to in heads:
        graph = nx.Graph(tree.edges)
        graph.remove_edge(sender, to)
        behind = sum(weights[k] for k in nx.node_connected_component(graph, sender))
        assert weights[sender] <= head.weight <= behind


@settings(max_examples=20)
@given(problems(least=1), st.sampled_from([False, True]))
def test_equal_weights_of_one_are_no_weights(
    problem: tuple[Tree, list[F], list[F], list[F]], overlap: bool
) -> None:
    tree, starts, targets, _ = problem

    def run(weights: list[F]) -> list[list[F]]:
        swarm = ExactSwarm(
            "relaysgd",
            views([tree], peer_weights=weights),
            Run(total_steps=5),
            Problem(vectors(starts), vectors(targets), LR),
            options={"overlap": overlap},
        )
        return trajectory_of(swarm.run())

    assert run([F(1)] * tree.n) == run([])


@pytest.mark.parametrize("n", [2, 3, 6, 9])
def test_on_two_trees_each_half_has_weights_of_its_own(n: int) -> None:
    edges = [in_order_tree(n), mirrored_tree(n)]
    weights = [F(k % 3) for k in range(1, n + 1)]
    starts = [[F(i * k % 5) for i in range(n)] for k in (1, 2, 3)]
    targets = [[F(7 * i * k % 11) for i in range(n)] for k in (1, 2, 3)]
    swarm = ExactSwarm(
        "relaysgd",
        views([Tree(n, tuple(tree)) for tree in edges], peer_weights=weights),
        Run(total_steps=8),
        Problem(list(zip(*starts, strict=True)), list(zip(*targets, strict=True)), LR),
    ).run()
    for k, tree in enumerate([0, 0, 1]):
        assert trajectory_of(swarm, k) == by_delays(
            edges[tree], starts[k], targets[k], 8, weights=weights
        )


@settings(max_examples=30)
@given(problems())
def test_all_reduce_is_the_weighted_mean(
    problem: tuple[Tree, list[F], list[F], list[F]],
) -> None:
    tree, x, targets, weights = problem
    swarm = ExactSwarm(
        "allreduce",
        views([tree], peer_weights=weights),
        Run(total_steps=4),
        Problem(vectors(x), vectors(targets), LR),
    ).run()
    for models in trajectory_of(swarm):
        half = half_step(x, targets)
        mean = sum((w * y for w, y in zip(weights, half, strict=True)), F(0)) / sum(weights)
        x = [mean] * tree.n
        assert models == x


@settings(max_examples=30)
@given(problems())
def test_updates_are_relayed_by_weight(
    problem: tuple[Tree, list[F], list[F], list[F]],
) -> None:
    """relaysgd-grad: after all has come, x is the start and the weighted mean of all movements."""
    tree, starts, targets, weights = problem
    steps = tree.n + 2

    def once(i: int, step: int) -> tuple[F, ...]:
        """Peer i moves to its target in the first step, and then stays; without data, at once."""
        return (targets[i],) if step == 0 and weights[i] else swarm.bodies[i].vectors["x"]

    swarm = ExactSwarm(
        "relaysgd-grad",
        views([tree], peer_weights=weights),
        Run(total_steps=steps),
        Problem(vectors(starts), vectors(targets), sample=once),
    )
    swarm.run()
    moved = [t - x for t, x in zip(targets, starts, strict=True)]
    mean = sum(w * u for w, u in zip(weights, moved, strict=True)) / sum(weights)
    assert trajectory_of(swarm)[-1] == [x + mean for x in starts]


@settings(max_examples=30)
@given(problems())
def test_mean_estimation_weighs_samples(
    problem: tuple[Tree, list[F], list[F], list[F]],
) -> None:
    """Each peer's samples are always the same number: all that has come weighs alike over time."""
    tree, starts, samples, weights = problem
    steps = 6
    swarm = ExactSwarm(
        "relaysum",
        views([tree], peer_weights=weights),
        Run(total_steps=steps),
        Problem(vectors(starts), vectors(samples), sample=lambda i, step: (samples[i],)),  # noqa: ARG005
    ).run()
    hops = dict(
        nx.all_pairs_shortest_path_length(nx.Graph([*tree.edges, *((k, k) for k in range(tree.n))]))
    )
    for i, estimate in enumerate(trajectory_of(swarm)[-1]):
        times = [max(steps - max(hops[i][j] - 1, 0), 0) for j in range(tree.n)]
        masses = [w * t for w, t in zip(weights, times, strict=True)]
        if sum(masses):
            assert estimate == sum(m * s for m, s in zip(masses, samples, strict=True)) / sum(
                masses
            )


@settings(max_examples=30)
@given(problems(), st.booleans())
def test_the_rate_factor_is_one_over_the_part_of_an_update_that_stays(
    problem: tuple[Tree, list[F], list[F], list[F]], overlap: bool
) -> None:
    """1 + sum over i, j of w_i w_j delay_ij / W^2."""
    tree, _, _, weights = problem
    hops = {(i, j): h for i in range(tree.n) for j, _, h in tree.walk(i)}
    delays = {pair: h if overlap else max(h - 1, 0) for pair, h in hops.items()}
    expected = (
        1 + sum(weights[i] * weights[j] * d for (i, j), d in delays.items()) / sum(weights) ** 2
    )
    assert tree.lr_factor(overlap=overlap, weights=weights) == expected


# --- without data ---------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2])
def test_who_has_no_data_waits_for_the_others_but_for_ever_only_before_the_last_step(
    steps: int,
) -> None:
    """In the last one they have finished, and left, if none of them can be reached: what they had
    sent has got lost. Before, it would run ahead of all others to its end, and relay no more."""
    peer = RelaySGD(Run(total_steps=steps, deadline_s=30.0), Options())
    peer.handle(NewView(chain_view((0.0, 1.0, 1.0))), 0.0)
    peer.handle(Trained(0, 1), 0.0)
    assert peer.next_deadline() is None, "for as long as they take to train"
    peer.handle(Gone("b"), 50.0)
    assert peer.next_deadline() == (80.0 if steps == 1 else None)
    ended = peer.handle(Tick(), 80.0)
    assert (Finished(1) in ended) == (steps == 1)


# --- what it refuses ------------------------------------------------------------------------------


def chain_view(weights: tuple[float, float, float]) -> View:
    """Of peer a in the chain a - b - c."""
    named = dict(zip("abc", weights, strict=True))
    behind = ({"b": named["b"] + named["c"]},)
    members = {"a": 1, "b": 1, "c": 1}
    return View(
        Epoch(1, 1), 0, "a", members, trees=({"b": 2},), weights=named, weight_behind=behind
    )


def relay(weight: float, count: int = 2) -> Head:
    return Head("b", 1, Epoch(1, 1), step=0, kind=Kind.RELAY, count=count, weight=weight)


@pytest.mark.parametrize(
    ("weight", "verdict"),
    [
        (0.5, Verdict.ACCEPTED),
        (0.0, Verdict.ACCEPTED),
        (2.0, Verdict.ACCEPTED),
        (2.0 * (1 + 1e-12), Verdict.ACCEPTED),
        (2.1, Verdict.BAD_COUNT),
        (-0.1, Verdict.BAD_COUNT),
        (inf, Verdict.BAD_COUNT),
        (nan, Verdict.BAD_COUNT),
    ],
)
@pytest.mark.parametrize("method", ["relaysgd", "relaysgd-grad", "relaysum"])
def test_a_weight_is_between_nothing_and_what_is_behind_the_edge(
    method: str, weight: float, verdict: Verdict
) -> None:
    peer = build(method, {}, Run(total_steps=2))
    view = chain_view((5.0, 1.5, 0.5))
    peer.handle(NewView(view), 0.0)
    assert peer.admit(relay(weight)) is verdict


@pytest.mark.parametrize(("weight", "fits"), [(1.5, True), (1.6, False), (nan, False)])
def test_so_is_that_of_a_sum_on_its_way_to_the_root(weight: float, *, fits: bool) -> None:
    """Peer a is the root of b - a - c."""
    weights, members = {"a": 5.0, "b": 1.5, "c": 0.5}, {"a": 1, "b": 1, "c": 1}
    behind = ({"b": 1.5, "c": 0.5},)
    trees = ({"b": 1, "c": 1},)
    peer = AllReduce(Run(total_steps=2))
    peer.handle(
        NewView(View(Epoch(1, 1), 0, "a", members, trees, weights=weights, weight_behind=behind)),
        0.0,
    )
    expected = Verdict.ACCEPTED if fits else Verdict.BAD_COUNT
    assert peer.admit(relay(weight, count=1)) is expected


def test_what_comes_with_weight_0_is_not_used_whatever_is_in_it() -> None:
    peer = RelaySGD(Run(total_steps=2), Options())
    peer.handle(NewView(chain_view((1.0, 0.0, 1.0))), 0.0)
    peer.handle(Trained(0, 1), 1.0)
    head = relay(0.0)
    effects = peer.handle(Received(head, (Message(head),)), 1.5)
    combined = [term for effect in effects for lin in lins_of(effect) for term in lin.terms]
    assert combined
    assert not [ref for _, ref in combined if isinstance(ref, Message)]


def lins_of(effect: object) -> list[Lin]:
    if isinstance(effect, Set | Observe):
        return [effect.lin]
    return list(effect.lins) if isinstance(effect, Send) else []
