"""Figures 7, 8 and 10: convergence on quadratics of growing heterogeneity, on rings and stars."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from benchmarks.figures.bench import Bench, panels, style
from benchmarks.figures.lab import problems, suboptimality_curves, swarm_config

ZETA_SQUARED = (0.0, 0.01, 1.0, 100.0)
PEERS = 32
EPSILON = 1e-6
TUNED_WITHIN = 1000  # steps
NOISE = 1e-4  # sigma^2 of figure 7, whose caption gives none
EVERY = 5  # steps between rows of the CSV


@dataclass(frozen=True)
class Comparison:
    """Methods, each with its topology, side by side for `shown` steps."""

    name: str
    methods: Sequence[tuple[str, str]]
    shown: int
    noise: float = 0.0


RING = Comparison(
    "figure-7",
    (("relaysgd", "chain"), ("d2", "ring"), ("gradient-tracking", "ring"), ("dpsgd", "ring")),
    shown=300,
    noise=NOISE,
)
STAR = Comparison(
    "figure-8",
    (("relaysgd", "star"), ("d2", "star"), ("gradient-tracking", "star"), ("dpsgd", "star")),
    shown=300,
)
UPDATES = Comparison(
    "figure-10",
    (("relaysgd", "chain"), ("relaysgd-grad", "chain"), ("dpsgd", "ring")),
    shown=500,
)


def compare(
    bench: Bench, what: Comparison, n: int = PEERS, zetas: Sequence[float] = ZETA_SQUARED
) -> None:
    """One panel for each heterogeneity: f(mean of the models) - f(x*) by steps.

    Rates are tuned without noise to reach 1e-6; where none does, the rate that is best at
    zeta^2 = 0 is shown, so that the plateau can be seen.
    """
    figure, axes = panels(
        [f"$\\zeta^2$ = {zeta:g}" for zeta in zetas],
        "steps",
        r"$f(\bar x) - f(x^*)$",
        yscale="log",
    )
    rows: list[tuple[str, str, float, float, int, float]] = []
    for algorithm, graph in what.methods:
        chosen = problems(n, (0,), zetas)
        searched = swarm_config(algorithm, graph, n, TUNED_WITHIN)
        key = f"{what.name}/{algorithm}/{graph}/{n}"
        rates = bench.rates(key, searched, chosen, EPSILON)
        rates = torch.where(rates.isnan(), rates[0], rates)
        config = swarm_config(algorithm, graph, n, what.shown)
        curves = suboptimality_curves(config, chosen, rates, noise=what.noise)[:, :, 0]
        for k, zeta in enumerate(zetas):
            line = curves[:, k].tolist()
            rate = float(rates[k])
            rows += [(algorithm, graph, zeta, rate, t, value) for t, value in enumerate(line)][
                ::EVERY
            ]
            axes[k].plot(line, label=f"{algorithm}, {graph}", **style(algorithm))
    axes[0].set_ylim(1e-14, 1e3)
    axes[-1].legend(fontsize=7)
    header = ("algorithm", "graph", "zeta_squared", "rate", "step", "suboptimality")
    bench.save(what.name, header, rows, figure)


def figure_7(bench: Bench) -> None:
    """On a ring of 32, with noise in the gradients."""
    compare(bench, RING)


def figure_8(bench: Bench) -> None:
    """On a star of 32."""
    compare(bench, STAR)


def figure_10(bench: Bench) -> None:
    """Relayed models against relayed updates and gossip."""
    compare(bench, UPDATES)
