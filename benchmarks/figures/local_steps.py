"""What the paper leaves out: more local steps between exchanges, for the same bytes.

Every method sends the same number of models per peer; one that takes H local steps between
exchanges computes H times as many gradients. Left, without noise and with so many models that all
have come to rest: how far from the optimum the mean of the models stays, the bias. Right, with
noise in the gradients and few models: how far from it the peers' own models end, on average.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.figures.bench import Bench, panels, style
from benchmarks.figures.lab import Quadratics, problems, run, swarm_config
from peer.simulator.traffic import Cost
from relayswarm.config import RunConfig

METHODS = (
    ("relaysgd", "heap-binary-tree"),
    ("d2", "ring"),
    ("gradient-tracking", "ring"),
    ("local-sgd", "heap-binary-tree"),
    ("swarmsgd", "ring"),
)
LOCAL_STEPS = (1, 4, 16, 64)
PEERS = 16
MODELS_TO_REST, MODELS = 3000, 200  # sent by each peer, on average
RATES = torch.logspace(-3, 0, 16, dtype=torch.float64)
FIXED_RATE = 0.05
NOISE = 1.0  # sigma^2
DRY_RUN = 20  # steps, to see what a step costs


@dataclass(frozen=True)
class Ended:
    """f - f(x*) at the end for each rate, of the mean of the models and on average over peers."""

    mean_model: Tensor  # (R,)
    peers: Tensor  # (R,)
    cost: Cost


def figure_local_steps(
    bench: Bench,
    counts: Sequence[int] = LOCAL_STEPS,
    n: int = PEERS,
    models: tuple[int, int] = (MODELS_TO_REST, MODELS),
) -> None:
    """Bias at one fixed rate, and with noise the error at the best rate, against H."""
    titles = [f"mean model, no noise, rate {FIXED_RATE:g}", "peers' models, noise, best rate"]
    figure, axes = panels(titles, "local steps H", "suboptimality", xscale="log", yscale="log")
    rows = []
    for algorithm, graph in METHODS:
        found = [measured(algorithm, graph, h, n, models) for h in counts]
        rows += [(algorithm, graph, h, *row) for h, row in zip(counts, found, strict=True)]
        for axis, column in zip(axes, (2, 4), strict=True):
            values = [row[column] for row in found]
            axis.plot(counts, values, marker=".", label=f"{algorithm}, {graph}", **style(algorithm))
    axes[0].set_ylim(1e-8, 1)  # below, there is no bias
    axes[0].legend(fontsize=7)
    measures = ("bias_at_fixed_rate", "best_rate_with_noise", "error_with_noise")
    costs = ("models_sent_per_peer", "gradients_per_peer")
    bench.save(
        "local-steps", ("algorithm", "graph", "local_steps", *costs, *measures), rows, figure
    )


def measured(
    algorithm: str, graph: str, h: int, n: int, models: tuple[int, int]
) -> tuple[float, ...]:
    """Models sent and gradients per peer; bias at the fixed rate; best rate with noise, error."""
    dry = end(config_of(algorithm, graph, h, n, DRY_RUN), RATES[:1], 0.0).cost
    many, few = (max(2, round(k / dry.models_sent_per_step.mean)) for k in models)
    fixed = torch.tensor([FIXED_RATE], dtype=torch.float64)
    exact = end(config_of(algorithm, graph, h, n, many), fixed, 0.0)
    noisy = end(config_of(algorithm, graph, h, n, few), RATES, NOISE)
    k = int(noisy.peers.nan_to_num(torch.inf).argmin())
    sent = noisy.cost.models_sent_per_step.mean * few
    gradients = noisy.cost.gradient_evaluations / n
    return sent, gradients, float(exact.mean_model[0]), float(RATES[k]), float(noisy.peers[k])


def config_of(algorithm: str, graph: str, h: int, n: int, steps: int) -> RunConfig:
    """A swarm that takes h local steps between exchanges."""
    return swarm_config(algorithm, graph, n, steps, options={"local_steps": h})


def end(config: RunConfig, rates: Tensor, noise: float) -> Ended:
    """Run to the end, with each of the rates (R,)."""
    chosen = problems(config.peers)
    descent = Quadratics(chosen, rates[None, :], config.algorithm.local_steps, noise)
    last: list[Tensor] = []

    def watch(done: int, models: Tensor) -> bool:  # noqa: ARG001
        last[:] = [models.clone()]
        return False

    p, r, d = descent.shape
    cost = run(config, descent, p * r * d, watch)
    mean_model = descent.suboptimality(last[0].mean(0))[0]
    return Ended(mean_model, descent.suboptimality(last[0]).mean(0)[0], cost)
