"""Problems over fractions, each of |x - target|^2 / 2 at every peer, and what exact swarms make of
them."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction as F

import networkx as nx
from hypothesis import strategies as st

from coordinator.trees import Tree
from peer.simulator.exact import ExactSwarm, Vector
from tests.shapes import trees

LR = F(1, 2)
"""At which a step goes half the way."""


def vectors(numbers: Sequence[F]) -> list[Vector]:
    return [(number,) for number in numbers]


def trajectory_of(swarm: ExactSwarm, k: int = 0) -> list[list[F]]:
    """Coordinate k of all models, step by step."""
    return [[x[k] for x in models] for models in zip(*swarm.models, strict=True)]


@st.composite
def tree_problems(draw: st.DrawFn, least: int = 1, most: int = 8) -> tuple[Tree, list[F], list[F]]:
    """A tree, and where its peers start and what they learn."""
    tree = draw(trees(least, most))
    numbers = st.lists(st.integers(-9, 9).map(F), min_size=tree.n, max_size=tree.n)
    return tree, draw(numbers), draw(numbers)


def half_step(x: Sequence[F], targets: Sequence[F]) -> list[F]:
    """Of training at `LR`. A peer without data has its own point as its target."""
    return [(x_i + t_i) / 2 for x_i, t_i in zip(x, targets, strict=True)]


def by_delays(
    edges: Sequence[tuple[int, int]],
    x: list[F],
    targets: Sequence[F],
    steps: int,
    *,
    weights: Sequence[F] | None = None,
    overlap: bool = False,
) -> list[list[F]]:
    """x_i^(t+1) = 1/W sum_j w_j x_j^(t - delay_ij + 1/2), with x_i^(t) for what has not come yet.
    Without weights all weigh 1, and W is n."""
    n = len(x)
    w = [F(1)] * n if weights is None else weights
    graph = nx.Graph(edges)
    graph.add_nodes_from(range(n))
    hops = dict(nx.all_pairs_shortest_path_length(graph))
    halves: list[list[F]] = []
    trajectory = []
    for t in range(steps):
        halves.append(half_step(x, targets))
        new = []
        for i in range(n):
            delays = [hops[i][j] if overlap else max(hops[i][j] - 1, 0) for j in range(n)]
            known = [halves[t - d][j] if d <= t else x[i] for j, d in enumerate(delays)]
            new.append(sum((w_j * y for w_j, y in zip(w, known, strict=True)), F(0)) / sum(w))
        x = new
        trajectory.append(x)
    return trajectory
