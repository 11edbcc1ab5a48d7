"""D2 over fractions, against matrix formulas that share no code with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from fractions import Fraction as F

from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.gossip_weights import lazy, metropolis_hastings
from coordinator.graphs import Graph, build_graph
from peer.algorithms.core import (
    Epoch,
    Head,
    Kind,
    Message,
    NewView,
    Received,
    Run,
    Send,
    Set,
    Trained,
    Verdict,
    View,
)
from peer.algorithms.d2 import D2
from peer.simulator.exact import ExactSwarm, Problem, one_second, views
from peer.simulator.links import LosingLink, SeededLink
from peer.simulator.world import World
from tests.peer.algorithms.exact_problems import trajectory_of

Matrix = list[list[F]]
Losses = set[tuple[int, int, int]]  # (step, sender, receiver)


def matrix(weights: Mapping[int, Mapping[int, F]]) -> Matrix:
    n = len(weights)
    return [[weights[i].get(j, F(0)) for j in range(n)] for i in range(n)]


def product(w: Matrix, x: list[F]) -> list[F]:
    return [sum((a * b for a, b in zip(row, x, strict=True)), F(0)) for row in w]


def algorithm_2(
    w: Matrix, x: list[F], targets: list[F], steps: int, lost: Losses, lr: F = F(1, 2)
) -> list[list[F]]:
    """Lines 4 to 7 of Algorithm 2 in matrix form, rows rescaled to what arrived."""
    n, c, trajectory = len(x), [F(0)] * len(x), []
    for t in range(steps):
        u = [lr * (target - x_i) for target, x_i in zip(targets, x, strict=True)]
        x_half = [x[i] + u[i] + c[i] for i in range(n)]
        there = [[F(0) if (t, j, i) in lost else w[i][j] for j in range(n)] for i in range(n)]
        new = product([[a / sum(row) for a in row] for row in there], x_half)
        c = [new[i] - x[i] - u[i] for i in range(n)]
        x = new
        trajectory.append(x)
    return trajectory


def tang(w: Matrix, x: list[F], targets: list[F], steps: int, lr: F = F(1, 2)) -> list[list[F]]:
    """D2 as Tang et al. print it: x^(1) = W (x^(0) - lr g(x^(0))), and from then on
    x^(t+1) = W (2 x^(t) - x^(t-1) - lr g(x^(t)) + lr g(x^(t-1)))."""

    def g(x: list[F]) -> list[F]:
        return [a - b for a, b in zip(x, targets, strict=True)]

    trajectory = [x, product(w, [a - lr * b for a, b in zip(x, g(x), strict=True)])]
    for _ in range(steps - 1):
        old, now = trajectory[-2:]
        both = zip(now, old, g(now), g(old), strict=True)
        trajectory.append(product(w, [2 * a - b - lr * p + lr * q for a, b, p, q in both]))
    return trajectory[1:]


def swarm_of(
    graph: Graph,
    weights: Mapping[int, Mapping[int, F]],
    starts: list[F],
    targets: list[F],
    world: World,
    duration_s: Callable[[int, int], float] = one_second,
    steps: int = 7,
) -> ExactSwarm:
    return ExactSwarm(
        "d2",
        views(graph=graph, weights=weights),
        Run(steps, deadline_s=1e6),
        Problem([(x,) for x in starts], [(x,) for x in targets]),
        world=world,
        duration_s=duration_s,
    ).run()


graphs = st.sampled_from([("ring", 3), ("ring", 6), ("chain", 5), ("star", 5), ("chain", 2)])
numbers = st.lists(st.integers(-9, 9).map(F), min_size=6, max_size=6)


@settings(max_examples=20)
@given(graphs, numbers, numbers, st.integers(0, 2**32))
def test_without_losses_it_is_both_printed_forms(
    graph: tuple[str, int], starts: list[F], targets: list[F], seed: int
) -> None:
    """Whatever messages and training take: a delay alone loses nothing."""
    built = build_graph(*graph)
    weights, n = metropolis_hastings(built), built.n
    swarm = swarm_of(
        built,
        weights,
        starts[:n],
        targets[:n],
        World(SeededLink(seed, delay_s=(0.001, 3.0))),
        lambda i, step: 0.5 + (seed >> (i + step) % 29 & 3),
    )
    w = matrix(weights)
    expected = algorithm_2(w, starts[:n], targets[:n], 7, set())
    assert trajectory_of(swarm) == expected
    assert trajectory_of(swarm) == tang(w, starts[:n], targets[:n], 7)


@settings(max_examples=20)
@given(graphs, numbers, numbers, st.data())
def test_with_losses_the_weights_left_are_rescaled(
    graph: tuple[str, int], starts: list[F], targets: list[F], data: st.DataObject
) -> None:
    """The receiver rescales the weights it still has, its own included, to sum to one."""
    built = build_graph(*graph)
    n = built.n
    edges = [(e.u, e.v) for e in built.edges] + [(e.v, e.u) for e in built.edges]
    messages = [(t, *edge) for t in range(6) for edge in edges]
    lost = data.draw(st.sets(st.sampled_from(messages)))

    def loses(sender: str, to: str, head: Head) -> bool:
        return (head.step, int(sender[5:]), int(to[5:])) in lost

    weights = lazy(built)
    swarm = swarm_of(built, weights, starts[:n], targets[:n], World(LosingLink(loses)), steps=6)
    assert trajectory_of(swarm) == algorithm_2(matrix(weights), starts[:n], targets[:n], 6, lost)


@settings(max_examples=20)
@given(numbers, numbers, st.integers(0, 2**32))
def test_the_mean_moves_by_the_mean_update_alone(
    starts: list[F], targets: list[F], seed: int
) -> None:
    """Corrections sum to zero over the swarm, as the columns of W sum to one."""
    graph = build_graph("erdos-renyi", 6, seed=seed, probability=0.5)
    swarm = swarm_of(graph, metropolis_hastings(graph), starts, targets, World())
    moved = sum(update[0] for body in swarm.bodies for update in body.updates)
    assert sum(x for (x,) in (models[-1] for models in swarm.models)) == sum(starts) + moved
    assert sum(body.vectors["correction"][0] for body in swarm.bodies) == 0


def test_a_change_of_epoch_starts_corrections_over() -> None:
    graph = build_graph("ring", 4)
    w = metropolis_hastings(graph)
    starts, targets = [F(0)] * 4, [F(8), F(0), F(-4), F(2)]
    swarm = ExactSwarm(
        "d2",
        views(graph=graph, weights=w),
        Run(6),
        Problem([(x,) for x in starts], [(x,) for x in targets]),
    )
    swarm.world.publish(views(graph=graph, weights=w, epoch=Epoch(1, 2), effective_step=3))
    swarm.run()
    before = algorithm_2(matrix(w), starts, targets, 3, set())
    after = algorithm_2(matrix(w), before[-1], targets, 3, set())
    assert trajectory_of(swarm) == before + after


def test_float_buffers_are_mixed_but_never_corrected() -> None:
    """Coordinate 1 stands for one: with W = 1/2 everywhere it becomes the mean of two halves."""
    graph = build_graph("chain", 2)
    swarm = ExactSwarm(
        "d2",
        views(graph=graph, weights=metropolis_hastings(graph)),
        Run(3),
        Problem([(F(0), F(0))] * 2, [(F(8), F(8)), (F(0), F(0))], parameters_end=1),
    ).run()
    # Half way to 8 and to 0, then the mean: 0 -> 2 -> 3 -> 7/2.
    assert [x[1] for x in swarm.models[0]] == [F(2), F(3), F(7, 2)]
    assert all(body.vectors["correction"][1] == 0 for body in swarm.bodies)
    assert all(body.vectors["correction"][0] != 0 for body in swarm.bodies)


def test_alone_it_is_gradient_descent() -> None:
    graph = build_graph("chain", 1)
    swarm = swarm_of(graph, metropolis_hastings(graph), [F(0)], [F(8)], World(), steps=3)
    assert trajectory_of(swarm) == [[F(4)], [F(6)], [F(7)]]


def test_alone_for_lack_of_messages_it_keeps_its_model() -> None:
    """All lost: the own weight is rescaled to one."""
    graph = build_graph("ring", 4)
    link = LosingLink(lambda sender, to, head: True)  # noqa: ARG005
    swarm = swarm_of(graph, metropolis_hastings(graph), [F(0)] * 4, [F(8)] * 4, World(link))
    assert trajectory_of(swarm)[0] == [F(4)] * 4
    assert all(a.missed == 2 and a.counted == 1 for node in swarm.nodes for a in node.history)


def view() -> View:
    members = {"a": 1, "b": 1, "c": 1}
    return View(Epoch(1, 1), 0, "a", members, mixing={"c": 0.25, "b": 0.25, "a": 0.5})


def gossip(sender: str) -> Received:
    head = Head(sender, 1, Epoch(1, 1), 0, Kind.GOSSIP, count=1)
    return Received(head, (Message(head),))


def test_a_complete_row_is_not_divided_by_its_sum() -> None:
    """Three thirds as doubles may sum to less than 1; peers are visited in order."""
    peer = D2(Run(3))
    peer.handle(NewView(view()), 0.0)
    sent = peer.handle(Trained(0, 1), 1.0)
    assert [effect.to for effect in sent if isinstance(effect, Send)] == ["b", "c"]
    peer.handle(gossip("c"), 1.1)
    effects = peer.handle(gossip("b"), 1.2)
    line_6 = [effect.lin for effect in effects if isinstance(effect, Set)][2]
    assert line_6.divisor == 1
    assert [coef for coef, _ in line_6.terms] == [0.5, 0.25, 0.25]


def test_only_those_with_a_weight_are_heard() -> None:
    peer = D2(Run(3))
    peer.handle(NewView(replace(view(), mixing={"a": 0.5, "b": 0.5})), 0.0)
    assert peer.admit(gossip("b").head) is Verdict.ACCEPTED
    assert peer.admit(gossip("c").head) is Verdict.NOT_A_NEIGHBOUR
    assert peer.admit(gossip("a").head) is Verdict.NOT_A_NEIGHBOUR
    assert peer.admit(replace(gossip("b").head, tree=1)) is Verdict.NOT_A_NEIGHBOUR
