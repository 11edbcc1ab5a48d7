"""Figure 2: steps to 1e-6 against the number of peers, on three topologies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.figures.bench import Bench, panels, style
from benchmarks.figures.lab import problems, suboptimality_curves, swarm_config
from benchmarks.figures.tuning import steps_to

EPSILON = 1e-6
SEEDS = (0, 1, 2)
ZETA_SQUARED = (0.01, 1.0)
SIZES = (4, 8, 16, 32, 64)
LINES = {"chain": "-", "ring": "-", "heap-binary-tree": ":", "exponential": "--"}


@dataclass(frozen=True)
class Series:
    """A method on a topology, and how many steps it gets for each peer of the swarm."""

    algorithm: str
    graph: str
    steps_per_peer: int


ALL = (
    Series("relaysgd", "chain", 4),
    Series("relaysgd", "heap-binary-tree", 4),
    Series("d2", "ring", 4),
    Series("d2", "heap-binary-tree", 8),
    Series("gradient-tracking", "ring", 30),
    Series("gradient-tracking", "heap-binary-tree", 30),
    Series("sgp", "exponential", 10),
)
LEAST_STEPS = 600


def figure_2(
    bench: Bench,
    sizes: Sequence[int] = SIZES,
    seeds: Sequence[int] = SEEDS,
    all_: Sequence[Series] = ALL,
) -> None:
    """Mean over seeds of the steps with the best rate for each problem."""
    figure, axes = panels(
        [f"$\\zeta^2$ = {zeta:g}" for zeta in ZETA_SQUARED], "peers", "steps to $10^{-6}$"
    )
    rows = []
    for series in all_:
        found = [needed(bench, series, n, seeds) for n in sizes]
        for k, zeta in enumerate(ZETA_SQUARED):
            steps = [row[k] for row in found]
            rows += [
                (series.algorithm, series.graph, zeta, n, value)
                for n, value in zip(sizes, steps, strict=True)
            ]
            label = f"{series.algorithm}, {series.graph}"
            line = {"linestyle": LINES[series.graph], "marker": ".", "label": label}
            axes[k].plot(sizes, steps, **line, **style(series.algorithm))
    axes[0].set_ylim(0, 500)
    axes[1].legend(fontsize=7)
    bench.save("figure-2", ("algorithm", "graph", "zeta_squared", "peers", "steps"), rows, figure)


def needed(bench: Bench, series: Series, n: int, seeds: Sequence[int]) -> list[float]:
    """For each heterogeneity the mean over seeds; nan where a seed never got there."""
    steps = max(LEAST_STEPS, series.steps_per_peer * n)
    config = swarm_config(series.algorithm, series.graph, n, steps)
    chosen = problems(n, seeds, ZETA_SQUARED)
    key = f"figure-2/{series.algorithm}/{series.graph}/{n}"
    rates = bench.rates(key, config, chosen, EPSILON)
    curves = suboptimality_curves(config, chosen, rates)
    found = steps_to(curves, EPSILON)[:, 0].view(len(ZETA_SQUARED), len(seeds)).mean(1).tolist()
    return [value if math.isfinite(value) else math.nan for value in found]
