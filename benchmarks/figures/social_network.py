"""Figure 3: RelaySGD on spanning trees of a social network, D2 and DP-SGD on the whole of it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.figures.bench import Bench, panels, style
from benchmarks.figures.lab import problems, suboptimality_curves, swarm_config
from coordinator.graph_files import LabelledGraph
from coordinator.graphs import Edge, Graph, build_graph

GRAPH, PEERS = "social-network", 32
ZETA_SQUARED, NOISE, R0 = 0.1, 0.1, 1.0
EPSILON = 1e-5
STEPS = 2500
TREES = 5
WHOLE = ("d2", "gradient-tracking", "dpsgd")  # methods on the whole graph
HALVINGS = 9  # of the rate that is best without noise
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
    """Left as the paper has it, with noise; right without."""
    runs: list[tuple[str, LabelledGraph | None, str]] = [
        ("relaysgd", spanning_tree_costs(seed), f"tree {seed}") for seed in range(trees)
    ]
    runs += [(name, None, "whole graph") for name in whole]
    figure, axes = panels(
        ["with noise", "without noise"], "steps", r"$f(\bar x) - f(x^*)$", yscale="log"
    )
    rows = []
    for algorithm, graph, where in runs:
        chosen = problems(PEERS, (0,), (ZETA_SQUARED,), R0)
        config = swarm_config(algorithm, GRAPH, PEERS, steps)
        key = f"figure-3/{algorithm}/{where}"
        rate = bench.rates(key, config, chosen, EPSILON, graph)
        exact = suboptimality_curves(config, chosen, rate, graph=graph)[:, 0, 0]
        noisy = lowered(config.steps, algorithm, float(rate[0]), graph)
        label = "relaysgd, spanning trees" if where == "tree 0" else f"{algorithm}, {where}"
        label = "_" + label if algorithm == "relaysgd" and where != "tree 0" else label
        line = {"linestyle": "-" if graph else "--", "label": label, **style(algorithm)}
        axes[0].plot(noisy.curve, **line)
        axes[1].plot(exact[:200], **line)
        first = (exact <= EPSILON).nonzero()
        alone = int(first[0]) if len(first) else float("inf")
        rows.append((algorithm, where, float(rate[0]), alone, noisy.rate, noisy.steps))
    axes[0].set_ylim(1e-6, 1)
    axes[0].legend(fontsize=7)
    header = ("algorithm", "on", "rate", "steps", "rate_with_noise", "steps_with_noise")
    bench.save("figure-3", header, rows, figure)


def lowered(steps: int, algorithm: str, rate: float, graph: LabelledGraph | None) -> Noisy:
    """Halve the rate until noise lets the curve, smoothed, get to 1e-5: the soonest of these."""
    rates = rate / 2.0 ** torch.arange(HALVINGS, dtype=torch.float64)[None, :]
    config = swarm_config(algorithm, GRAPH, PEERS, steps)
    chosen = problems(PEERS, (0,), (ZETA_SQUARED,), R0)
    curves = suboptimality_curves(config, chosen, rates, noise=NOISE, graph=graph)[:, 0, :]
    smooth = curves.unfold(0, WINDOW, 1).mean(-1)  # (steps + 2 - WINDOW, rates)
    reached = first_at_most(smooth, EPSILON)
    k = int(reached.argmin()) if reached.min() < torch.inf else int(smooth[-1].argmin())
    return Noisy(float(rates[0, k]), smooth[:, k], float(reached[k]) + WINDOW - 1)


def first_at_most(curves: Tensor, level: float) -> Tensor:
    """For each column the first row at or below `level`; inf if none is."""
    below = curves <= level
    return torch.where(below.any(0), below.to(torch.int8).argmax(0).double(), torch.inf)
