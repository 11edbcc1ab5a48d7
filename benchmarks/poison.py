"""What a member who poisons the model does to the others, with and without `robust.clip`.

    python benchmarks/poison.py                eight peers on digits, one of them hostile; minutes
    python benchmarks/poison.py --steps 50     a short run

The hostile peer trains as the others do, but what it sends is not what it learnt:

reversed   ten times its message, with the opposite sign
noise      normally distributed numbers, of standard deviation 10
shifted    its message, and 0.1 on each element: near enough to look honest

Runs in the simulator, with the run config of the demo on a graph of degree 3; the transport's own
checks (finite numbers, counts) let all of it through. Accuracies are those of the honest peers:
the worst, and the mean of all. Prints JSON, and writes it (`--output`).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from peer.algorithms.core import Head, Kind, PeerId
from peer.simulator.learning import Simulation
from relayswarm import config as run_config

HOSTILE = "peer-3"
METHODS = ("relaysgd", "dpsgd", "swarmsgd")
BASE = ("peers=8", "data.alpha=1.0", "topology.graph=random-regular", "checkpoint.every=0")

Poison = Callable[[Tensor, float, torch.Generator], Tensor]
"""From a message of so many models to what is sent in its place."""

POISONS: dict[str, Poison] = {
    "reversed": lambda vector, *_: -10 * vector,
    "noise": lambda vector, models, random: (
        10 * models * torch.randn(vector.shape, generator=random, dtype=vector.dtype)
    ),
    "shifted": lambda vector, models, _: vector + 0.1 * models,
}


class Poisoned(Simulation):
    """A simulated run in which one peer sends something else than it learnt."""

    def __init__(self, *arguments: Any, hostile: PeerId, poison: Poison) -> None:
        super().__init__(*arguments)
        self._hostile, self._poison = hostile, poison

    def _add(self, peer: PeerId, shard: int, donor: PeerId | None = None) -> int:
        step = super()._add(peer, shard, donor)
        if peer == self._hostile:
            body: Any = self._bodies[peer]
            sound, random = body.letter, torch.Generator().manual_seed(1)

            def letter(head: Head, outgoing: tuple[Tensor, ...]) -> Any:
                models = float(head.count) if head.kind is Kind.RELAY else 1.0
                told, vectors = sound(head, outgoing)
                return told, tuple(self._poison(v, models, random) for v in vectors)

            body.letter = letter
        return step


def run(settings: Sequence[str], poison: Poison | None) -> dict[str, float]:
    """Accuracies of the honest peers after a run."""
    config = run_config.parse("", settings)
    honest: Any = lambda vector, *_: vector  # noqa: E731
    given: Any = (config, None, lambda _: None, 0)
    outcome = Poisoned(*given, hostile=HOSTILE, poison=poison or honest).run()
    found = [peer.metrics["accuracy"] for peer in outcome.peers if peer.id != HOSTILE]
    return {"worst": round(min(found), 4), "mean": round(mean(found), 4)}


def measure(steps: int, clips: Sequence[float], methods: Sequence[str]) -> list[dict[str, Any]]:
    rows = []
    for method in methods:
        settings = (*BASE, f"steps={steps}", f"algorithm.name={method}")
        for clip in (None, *clips):
            held = settings if clip is None else (*settings, f"robust.clip={clip}")
            row: dict[str, Any] = {"method": method, "clip": clip, "honest": run(held, None)}
            row |= {name: run(held, poison) for name, poison in POISONS.items()}
            rows.append(row)
            print(json.dumps(row), flush=True)
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--clip", type=float, nargs="+", default=[0.3])
    parser.add_argument("--method", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--output", type=Path, help="where to write the figures as JSON")
    given = parser.parse_args(arguments)
    figures = {
        "rows": measure(given.steps, given.clip, given.method),
        "machine": f"{os.cpu_count()} cores, {platform.processor() or platform.machine()}",
        "date": time.strftime("%Y-%m-%d"),
    }
    if given.output:
        given.output.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
