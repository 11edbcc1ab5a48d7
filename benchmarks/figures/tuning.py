"""The constant rate with which a swarm gets to a suboptimality soonest (RelaySGD, appendix C.4).

The paper bisects; here a grid of rates runs side by side and shrinks around the best, which finds
the same minimum and does not need the steps to be a convex function of the rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.figures.lab import suboptimality_curves
from coordinator.graph_files import LabelledGraph
from peer.tasks.quadratics import Problem
from relayswarm.config import RunConfig

LOWEST, HIGHEST = 0.003, 40.0  # rates; L = 1, so above 2 only those converge that lose of updates
GRID, ROUNDS = 24, 3
SETTLED = 2.0  # a run is watched for so many times the steps it took, to see it stay there


def steps_to(curve: Tensor, epsilon: float) -> Tensor:
    """Steps after which a curve (T + 1, ...) is at `epsilon` and stays there; inf if not."""
    above = ~(curve <= epsilon)  # nan is above
    number = torch.arange(len(curve), dtype=torch.float64).view(-1, *[1] * (curve.dim() - 1))
    last = torch.where(above, number, torch.tensor(-1.0, dtype=torch.float64)).amax(0)
    return torch.where(last == len(curve) - 1, torch.inf, last + 1)


@dataclass(frozen=True)
class Tuned:
    """For each problem the best rate, and the steps it takes (inf: no rate got there in time)."""

    rates: tuple[float, ...]
    steps: tuple[float, ...]


def tune(
    config: RunConfig,
    chosen: Sequence[Problem],
    epsilon: float = 1e-6,
    *,
    rounds: int = ROUNDS,
    graph: LabelledGraph | None = None,
) -> Tuned:
    """A rate for each of these problems, within `config.steps` steps."""
    grid = torch.logspace(math.log10(LOWEST), math.log10(HIGHEST), GRID, dtype=torch.float64)
    grid = grid.repeat(len(chosen), 1)
    best_rates, best_steps = grid[:, 0], torch.full((len(chosen),), torch.inf)
    ratio = (HIGHEST / LOWEST) ** (1.0 / (GRID - 1))
    for _ in range(rounds):
        until = _all_settled(epsilon)
        steps = steps_to(
            suboptimality_curves(config, chosen, grid, until=until, graph=graph), epsilon
        )
        least, k = steps.min(1)
        rates = grid.gather(1, k[:, None])[:, 0]
        best_rates = torch.where(least < best_steps, rates, best_rates)
        best_steps = torch.minimum(least, best_steps.to(least))
        zoom = torch.linspace(-1, 1, GRID, dtype=torch.float64)
        grid = best_rates[:, None] * ratio**zoom
        ratio = ratio ** (2 / (GRID - 1))
    return Tuned(tuple(best_rates.tolist()), tuple(best_steps.tolist()))


def _all_settled(epsilon: float) -> Callable[[Tensor], bool]:
    """Whether each problem's best rate has got there and stayed for long enough. Looked at every
    ten steps."""

    def until(curve: Tensor) -> bool:
        if len(curve) % 10:
            return False
        return bool(steps_to(curve, epsilon).amin(-1).max() * SETTLED + 5 < len(curve))

    return until
