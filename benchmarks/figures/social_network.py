"""Figure 3: RelaySGD on spanning trees of a social network, D2 and DP-SGD on the whole of it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.figures.bench import Bench, panels, style
from benchmarks.figures.lab import problems, suboptimality_curves, swarm_config
from coordinator.graph_files import LabelledGraph
from coordinator.graphs import Edge, Graph, build_graph

GRAPH, PEERS = "social-network", 32
ZETA_SQUARED, NOISE, R0 = 0.1, 0.1, 1.0
EPSILON = 1e-5
STEPS = 3000
TREES = 5
WHOLE = ("d2", "gradient-tracking", "dpsgd")  # methods on the whole graph
LOWERED = tuple(2.0 ** (-k / 2) for k in range(20))  # parts of the rate that is best without noise
WINDOW = 25  # steps over which a noisy curve is averaged


@dataclass(frozen=True)
class Noisy:
    """A run with noise: its rate, its smoothed curve, and when that gets to 1e-5 (inf: never)."""

    rate: float
    curve: Tensor
    steps: float


def spanning_tree_costs(seed: int, n: int = PEERS) -> LabelledGraph:
    """The network with random costs, so that the Spanning Tree Protocol elects a random tree."""
    draw = random.Random(seed)
    plain = build_graph(GRAPH, n)
    edges = tuple(Edge(u, v, draw.randint(1, 1000)) for u, v, _ in plain.edges)
    return LabelledGraph(Graph(n, edges), tuple(range(n)))


def figure_3(
    bench: Bench, trees: int = TREES, steps: int = STEPS, whole: Sequence[str] = WHOLE
) -> None:
    """With noise, as the paper has it: left the peers' own models, right the mean of all."""
    runs: list[tuple[str, LabelledGraph | None, str]] = [
        ("relaysgd", spanning_tree_costs(seed), f"tree {seed}") for seed in range(trees)
    ]
    runs += [(name, None, "whole graph") for name in whole]
    labels = r"$f(x_i) - f(x^*)$, mean over peers", r"$f(\bar x) - f(x^*)$"
    figure, axes = panels(["the peers' models", "the mean model"], "steps", labels[0], yscale="log")
    axes[1].set_ylabel(labels[1])
    rows = []
    for algorithm, graph, where in runs:
        chosen = problems(PEERS, (0,), (ZETA_SQUARED,), R0)
        config = swarm_config(algorithm, GRAPH, PEERS, steps)
        key = f"figure-3/{algorithm}/{where}"
        rate = bench.rates(key, config, chosen, EPSILON, graph)
        exact = suboptimality_curves(config, chosen, rate, graph=graph)[:, 0, 0]
        alone = float(first_at_most(exact[:, None], EPSILON))
        noisy = [
            lowered(config.steps, algorithm, float(rate[0]), graph, of_peers=of_peers)
            for of_peers in (True, False)
        ]
        for axis, run in zip(axes, noisy, strict=True):
            axis.plot(run.curve, **_line(algorithm, where, is_tree=graph is not None))
        found = (value for run in noisy for value in (run.rate, run.steps))
        rows.append((algorithm, where, float(rate[0]), alone, *found))
    for axis in axes:
        axis.set_ylim(1e-6, 1)
        axis.axhline(EPSILON, color="grey", linewidth=0.5)
    axes[0].legend(fontsize=7)
    header = ("algorithm", "on", "rate", "steps", "rate_with_noise", "steps_with_noise")
    more = ("rate_with_noise_mean_model", "steps_with_noise_mean_model")
    bench.save("figure-3", (*header, *more), rows, figure)


def _line(algorithm: str, where: str, *, is_tree: bool) -> dict[str, Any]:
    """How a curve looks; of the trees only one has a label."""
    label = "relaysgd, spanning trees" if where == "tree 0" else f"{algorithm}, {where}"
    hidden = "_" if is_tree and where != "tree 0" else ""
    line = {"linestyle": "-" if is_tree else "--", "label": hidden + label}
    return {**line, **style(algorithm)}


def lowered(
    steps: int, algorithm: str, rate: float, graph: LabelledGraph | None, *, of_peers: bool
) -> Noisy:
    """Lower the rate until noise lets the curve, smoothed, get to 1e-5: the soonest of these."""
    rates = rate * torch.tensor([LOWERED], dtype=torch.float64)
    config = swarm_config(algorithm, GRAPH, PEERS, steps)
    chosen = problems(PEERS, (0,), (ZETA_SQUARED,), R0)
    curves = suboptimality_curves(
        config, chosen, rates, noise=NOISE, graph=graph, of_peers=of_peers
    )
    smooth = curves[:, 0, :].unfold(0, WINDOW, 1).mean(-1)  # (steps + 2 - WINDOW, rates)
    reached = first_at_most(smooth, EPSILON)
    k = int(reached.argmin()) if reached.min() < torch.inf else int(smooth[-1].argmin())
    return Noisy(float(rates[0, k]), smooth[:, k], float(reached[k]) + WINDOW - 1)


def first_at_most(curves: Tensor, level: float) -> Tensor:
    """For each column the first row at or below `level`; inf if none is."""
    below = curves <= level
    return torch.where(below.any(0), below.to(torch.int8).argmax(0).double(), torch.inf)
