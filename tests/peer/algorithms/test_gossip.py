"""The gossip family over fractions, against matrix formulas that share no code with it."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction as F

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.gossip_weights import lazy, metropolis_hastings
from coordinator.graphs import Graph, build_graph
from peer.algorithms.core import Epoch, Run
from peer.algorithms.dpsgd_qgm import M, Options
from peer.algorithms.gradient_tracking import C
from peer.simulator.exact import ExactSwarm, Problem, views
from peer.simulator.links import LosingLink, SeededLink
from peer.simulator.world import World
from tests.peer.algorithms.exact_problems import trajectory_of

LR = F(1, 2)
B = F(9, 10)
STEPS = 6

Models = list[F]
Mix = Callable[[int, Models], Models]  # W at a step, applied to one number of each peer


@dataclass(frozen=True)
class Case:
    """A graph with weights, where peers start and what they descend to, and what gets lost."""

    graph: Graph
    is_lazy: bool
    starts: Models
    targets: Models
    lost: frozenset[tuple[int, int, int]]  # (step, sender, receiver)

    @property
    def weights(self) -> dict[int, dict[int, F]]:
        return (lazy if self.is_lazy else metropolis_hastings)(self.graph)

    def gradients(self, x: Models) -> Models:
        return [x_i - target for x_i, target in zip(x, self.targets, strict=True)]

    def mix(self, t: int, x: Models) -> Models:
        """W x, each row rescaled to what arrived."""
        rows = [
            {j: w for j, w in row.items() if (t, j, i) not in self.lost}
            for i, row in self.weights.items()
        ]
        return [sum(w * x[j] for j, w in row.items()) / sum(row.values()) for row in rows]

    def swarm(self, name: str, b: F = B, steps: int = STEPS, **settings: object) -> ExactSwarm:
        def loses(sender: str, to: str, head: object) -> bool:
            return (getattr(head, "step", -1), int(sender[5:]), int(to[5:])) in self.lost

        options = {"momentum": b} if name == "dpsgd-qgm" else {}
        vectors = [[(x,) for x in numbers] for numbers in (self.starts, self.targets)]
        problem = replace(Problem(*vectors, LR, momentum=b), **settings)  # type: ignore[arg-type]
        return ExactSwarm(
            name,
            views(graph=self.graph, weights=self.weights),
            Run(steps),
            problem,
            options=options,
            world=World(LosingLink(loses)),
        ).run()


@st.composite
def cases(draw: st.DrawFn, *, losses: bool = True) -> Case:
    n = draw(st.integers(2, 7))
    name = draw(st.sampled_from(["ring", "chain", "star", "complete", "erdos-renyi"]))
    graph = build_graph("chain" if n < 3 else name, n, seed=draw(st.integers(0, 99)))
    numbers = st.lists(st.integers(-9, 9).map(F), min_size=n, max_size=n)
    edges = [(i, j) for i in range(n) for j in graph.neighbours(i)]
    messages = st.sampled_from([(t, *edge) for t in range(STEPS) for edge in edges])
    lost = draw(st.frozensets(messages, max_size=12)) if losses else frozenset()
    return Case(graph, draw(st.booleans()), draw(numbers), draw(numbers), lost)


# --- references -----------------------------------------------------------------------------------


def dpsgd(case: Case) -> list[Models]:
    x, trajectory = case.starts, []
    for t in range(STEPS):
        x = case.mix(t, [a - LR * g for a, g in zip(x, case.gradients(x), strict=True)])
        trajectory.append(x)
    return trajectory


def quasi_global_momentum(case: Case) -> list[Models]:
    x, m, trajectory = case.starts, [F(0)] * case.graph.n, []
    for t in range(STEPS):
        g = case.gradients(x)
        u = [-LR * (g_i + B * (B * m_i + g_i)) for g_i, m_i in zip(g, m, strict=True)]
        new = case.mix(t, [a + b for a, b in zip(x, u, strict=True)])
        m = [B * m[i] + (1 - B) * (x[i] - new[i]) / LR for i in range(len(x))]
        x = new
        trajectory.append(x)
    return trajectory


def tracking_updates(case: Case) -> list[Models]:
    """As the listing is meant: x <- W (x + u + c), c <- W (c + u) - u."""
    x, c, trajectory = case.starts, [F(0)] * case.graph.n, []
    for t in range(STEPS):
        u = [-LR * g for g in case.gradients(x)]
        x = case.mix(t, [x[i] + u[i] + c[i] for i in range(len(x))])
        mixed = case.mix(t, [c[i] + u[i] for i in range(len(x))])
        c = [mixed[i] - u[i] for i in range(len(x))]
        trajectory.append(x)
    return trajectory


def tracking_gradients(case: Case) -> list[Models]:
    """The usual form: x <- W (x - lr y), y <- W y + g(x^(t+1)) - g(x^(t)); c + u is -lr y."""
    x, y, trajectory = case.starts, case.gradients(case.starts), []
    for t in range(STEPS):
        before = case.gradients(x)
        x = case.mix(t, [a - LR * b for a, b in zip(x, y, strict=True)])
        after, mixed = case.gradients(x), case.mix(t, y)
        y = [mixed[i] + after[i] - before[i] for i in range(len(x))]
        trajectory.append(x)
    return trajectory


# --- methods against references -------------------------------------------------------------------


@settings(max_examples=30)
@given(
    st.sampled_from(
        [
            ("dpsgd", dpsgd),
            ("dpsgd-qgm", quasi_global_momentum),
            ("gradient-tracking", tracking_updates),
        ]
    ),
    cases(),
)
def test_methods_follow_their_formulas_also_under_losses(
    method: tuple[str, Callable[[Case], list[Models]]], case: Case
) -> None:
    name, reference = method
    assert trajectory_of(case.swarm(name)) == reference(case)


@settings(max_examples=15)
@given(cases(losses=False))
def test_tracking_updates_is_tracking_gradients(case: Case) -> None:
    assert trajectory_of(case.swarm("gradient-tracking")) == tracking_gradients(case)


@settings(max_examples=15)
@given(st.sampled_from(["dpsgd", "gradient-tracking"]), cases(losses=False))
def test_the_mean_moves_by_the_mean_update_alone(name: str, case: Case) -> None:
    """W is doubly stochastic, and gradient tracking's corrections sum to zero."""
    swarm = case.swarm(name)
    mean = sum(case.starts) / case.graph.n
    for t, models in enumerate(trajectory_of(swarm)):
        mean += sum(body.updates[t][0] for body in swarm.bodies) / case.graph.n
        assert sum(models) / case.graph.n == mean
    if name == "gradient-tracking":
        assert sum(body.vectors[C.name][0] for body in swarm.bodies) == 0


@settings(max_examples=15)
@given(st.sampled_from(["dpsgd", "dpsgd-qgm", "gradient-tracking"]), cases())
def test_weights_sum_to_one_whatever_is_lost(name: str, case: Case) -> None:
    """A coordinate that is 1 everywhere and that training does not move stays 1."""
    ones = [(F(1),)] * case.graph.n
    swarm = case.swarm(name, starts=ones, curvature=(F(0),))
    assert {x for models in trajectory_of(swarm) for x in models} == {F(1)}


@settings(max_examples=15)
@given(
    st.sampled_from(["dpsgd", "dpsgd-qgm", "gradient-tracking"]),
    st.integers(0, 2**32),
    st.booleans(),
)
def test_no_fault_hangs_a_swarm(name: str, seed: int, known: bool) -> None:
    """Delays beyond deadlines, losses with and without a word, duplicates; weights still sum to one
    after every one of them."""
    draw = random.Random(seed)
    graph = build_graph("ring", 6)
    swarm = ExactSwarm(
        name,
        views(graph=graph, weights=metropolis_hastings(graph)),
        Run(STEPS, deadline_s=2.0),
        Problem([(F(1),)] * 6, [(F(1),)] * 6),
        duration_s=lambda i, step: draw.choice([0.1, 1.0, 5.0]),  # noqa: ARG005
        world=World(SeededLink(seed, (0.001, 3.0), drop=0.2, known=known, duplicate=0.2)),
    ).run()
    assert {x[0] for models in swarm.models for x in models} == {F(1)}


# --- by hand --------------------------------------------------------------------------------------


def two_peers() -> Case:
    """At 0 and 4, descending to 2 and -2, weights 1/2."""
    return Case(build_graph("chain", 2), False, [F(0), F(4)], [F(2), F(-2)], frozenset())


def test_dpsgd_by_hand() -> None:
    """Half steps 1 and 1, mean 1. Then 3/2 and -1/2, mean 1/2. Then 5/4 and -3/4, mean 1/4."""
    assert trajectory_of(two_peers().swarm("dpsgd"))[:3] == [[1, 1], [F(1, 2)] * 2, [F(1, 4)] * 2]


def test_quasi_global_momentum_by_hand() -> None:
    """b = 9/10. t=0: g = -2, 6; u = -1/2 * 19/10 g = 19/10, -57/10; x_half = 19/10, -17/10.

    x = 1/10 for both; m = 1/10 * (x^(0) - x^(1)) * 2 = -1/50 and 39/50.
    """
    swarm = two_peers().swarm("dpsgd-qgm")
    assert trajectory_of(swarm)[0] == [F(1, 10), F(1, 10)]
    one_step = ExactSwarm(
        "dpsgd-qgm",
        views(graph=two_peers().graph, weights=two_peers().weights),
        Run(1),
        Problem([(F(0),), (F(4),)], [(F(2),), (F(-2),)], LR, momentum=B),
        options={"momentum": B},
    ).run()
    assert [body.vectors[M.name] for body in one_step.bodies] == [(F(-1, 50),), (F(39, 50),)]
    assert Options().momentum == 0.9


@settings(max_examples=15)
@given(cases())
def test_without_momentum_the_register_is_the_last_movement_over_the_rate(case: Case) -> None:
    """What Adam's moments are of (`peer.training`)."""
    for steps in (1, STEPS):
        swarm = case.swarm("dpsgd-qgm", b=F(0), steps=steps)
        models = [case.starts, *trajectory_of(swarm)]
        for i, body in enumerate(swarm.bodies):
            assert body.vectors[M.name] == ((models[-2][i] - models[-1][i]) / LR,)


def test_gradient_tracking_by_hand() -> None:
    """t=0: u = 1, -3; x = (0 + 1 + 4 - 3)/2 = 1 for both; c = (1 - 3)/2 - u = -2, 2.

    t=1: u = 1/2, -3/2; x_half = 1 + 1/2 - 2, 1 - 3/2 + 2 = -1/2, 3/2; x = 1/2;
         c + u = -3/2, 1/2; their mean -1/2; c = -1, 1.
    """
    swarm = two_peers().swarm("gradient-tracking")
    assert trajectory_of(swarm)[:2] == [[1, 1], [F(1, 2), F(1, 2)]]
    two = ExactSwarm(
        "gradient-tracking",
        views(graph=two_peers().graph, weights=two_peers().weights),
        Run(2),
        Problem([(F(0),), (F(4),)], [(F(2),), (F(-2),)], LR),
    ).run()
    assert [body.vectors[C.name] for body in two.bodies] == [(F(-1),), (F(1),)]


# --- buffers, rates, epochs -----------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dpsgd", "dpsgd-qgm", "gradient-tracking"])
def test_float_buffers_are_mixed_but_never_corrected(name: str) -> None:
    """Coordinate 1 stands for a buffer that training moves half way to its target."""
    case = two_peers()
    swarm = ExactSwarm(
        name,
        views(graph=case.graph, weights=case.weights),
        Run(STEPS),
        Problem([(F(0), F(4))] * 2, [(F(8), F(0)), (F(0), F(2))], parameters_end=1),
    ).run()
    buffers = F(4)
    for models in trajectory_of(swarm, k=1):
        buffers = (buffers / 2 + (buffers + 2) / 2) / 2
        assert models == [buffers, buffers]


def test_a_step_at_rate_zero_leaves_the_momentum_alone() -> None:
    case = two_peers()
    swarm = ExactSwarm(
        "dpsgd-qgm",
        views(graph=case.graph, weights=case.weights),
        Run(1),
        Problem([(F(0),), (F(4),)], [(F(2),), (F(-2),)], lr=0),
    ).run()
    assert trajectory_of(swarm) == [[2, 2]]
    assert [body.vectors[M.name] for body in swarm.bodies] == [(F(0),)] * 2


def test_corrections_start_over_with_a_new_epoch() -> None:
    """Three steps on one graph, then three on another as if they were the first."""
    case = replace(two_peers(), graph=build_graph("chain", 4), starts=[F(k) for k in range(4)])
    case = replace(case, targets=[F(5), F(-1), F(2), F(7)])
    other = replace(case, graph=build_graph("ring", 4))
    swarm = ExactSwarm(
        "gradient-tracking",
        views(graph=case.graph, weights=case.weights),
        Run(STEPS),
        Problem([(x,) for x in case.starts], [(x,) for x in case.targets], LR),
    )
    swarm.world.publish(
        views(graph=other.graph, weights=other.weights, epoch=Epoch(1, 2), effective_step=3)
    )
    swarm.run()
    before = tracking_updates(case)[:3]
    after = tracking_updates(replace(other, starts=before[-1]))[:3]
    assert trajectory_of(swarm) == before + after
