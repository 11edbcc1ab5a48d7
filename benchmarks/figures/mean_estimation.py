"""Figure 9: estimating the mean of samples that all peers keep drawing."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.figures.bench import Bench, panels
from benchmarks.figures.lab import LocalUpdate, run, swarm_config

SIZES = (8, 32)
STEPS = 500
REPEATS = 400
MEAN = 1.0


def figure_9(
    bench: Bench, sizes: Sequence[int] = SIZES, steps: int = STEPS, repeats: int = REPEATS
) -> None:
    """E (estimate - 1)^2 of RelaySum on a chain and of gossip on a ring, and 1 / (nT)."""
    figure, axes = panels(
        [f"{n} peers" for n in sizes], "steps (T)", "mean squared error", xscale="log", yscale="log"
    )
    rows = []
    for axis, n in zip(axes, sizes, strict=True):
        relayed, gossiped = relaysum_errors(n, steps, repeats), gossip_errors(n, steps, repeats)
        bound = [1 / (n * t) for t in range(1, steps + 1)]
        values = zip(relayed, gossiped, bound, strict=True)
        rows += [(n, t, *row) for t, row in enumerate(values, start=1)]
        numbers = range(1, steps + 1)
        axis.plot(numbers, relayed, "tab:red", label="relaysum, chain")
        axis.plot(numbers, gossiped, "tab:gray", label="gossip, ring")
        axis.plot(numbers, bound, "k:", label="1 / (nT)")
    axes[0].legend(fontsize=7)
    bench.save("figure-9", ("peers", "step", "relaysum", "gossip", "one_over_nT"), rows, figure)


def relaysum_errors(n: int, steps: int, repeats: int) -> list[float]:
    """After each step: over all peers and repeats."""
    random = torch.Generator().manual_seed(n)

    def draw(peers: Sequence[int], step: int, scale: float, models: Tensor) -> None:  # noqa: ARG001
        models.copy_(_samples(models, random))

    return _errors("relaysum", "chain", n, steps, repeats, draw)


def gossip_errors(n: int, steps: int, repeats: int) -> list[float]:
    """The baseline: x <- W (x + (sample - x) / t), so that a lone peer holds its own mean."""
    random = torch.Generator().manual_seed(n)

    def draw(peers: Sequence[int], step: int, scale: float, models: Tensor) -> None:  # noqa: ARG001
        models += (_samples(models, random) - models) / (step + 1)

    return _errors("dpsgd", "ring", n, steps, repeats, draw)


def _samples(like: Tensor, random: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=random, dtype=like.dtype) + MEAN


def _errors(
    algorithm: str, graph: str, n: int, steps: int, repeats: int, draw: LocalUpdate
) -> list[float]:
    errors: list[float] = []

    def watch(done: int, models: Tensor) -> bool:  # noqa: ARG001
        errors.append(float((models - MEAN).square().mean()))
        return False

    run(swarm_config(algorithm, graph, n, steps), draw, repeats, watch)
    return errors
