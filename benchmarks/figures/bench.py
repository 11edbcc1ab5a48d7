"""What the figures share: tuned rates, kept in a file; CSV and PNG side by side; one look."""

from __future__ import annotations

import csv
import json
import math
import os
import platform
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.figures.tuning import Tuned, tune
from coordinator.graph_files import LabelledGraph
from peer.tasks.quadratics import Problem
from relayswarm.config import RunConfig

RATES = "rates.json"
PANEL_INCHES = (4.2, 3.4)
DPI = 110

COLOURS = {
    "relaysgd": "tab:red",
    "relaysgd-grad": "tab:orange",
    "d2": "tab:blue",
    "gradient-tracking": "tab:green",
    "sgp": "tab:purple",
    "dpsgd": "tab:gray",
    "local-sgd": "tab:brown",
    "swarmsgd": "tab:pink",
}


@dataclass
class Bench:
    """Where figures go, and the rates for them.

    `tuning`: search every rate anew; without it those in the file count, and one that is not there
    is searched.
    """

    output: Path
    tuning: bool = False
    rounds: int = 3
    _rates: dict[str, list[float | None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.output.mkdir(parents=True, exist_ok=True)
        path = self.output / RATES
        if path.exists():
            self._rates = json.loads(path.read_text())["rates"]
        self._searched: set[str] = set()

    def rates(
        self,
        key: str,
        config: RunConfig,
        chosen: Sequence[Problem],
        epsilon: float = 1e-6,
        graph: LabelledGraph | None = None,
    ) -> Tensor:
        """Rates, shape (P, 1), with which each problem gets to `epsilon` soonest; nan if none does.

        They are searched within `config.steps` steps.
        """
        if key not in self._rates or (self.tuning and key not in self._searched):
            self._searched.add(key)
            self._rates[key] = _rates_of(
                tune(config, chosen, epsilon, rounds=self.rounds, graph=graph)
            )
            self._write()
        found = [math.nan if rate is None else rate for rate in self._rates[key]]
        return torch.tensor(found, dtype=torch.float64)[:, None]

    def _write(self) -> None:
        how = "for each of the figure's problems in turn; null: no rate got there in time"
        content = {"how": how, "rates": dict(sorted(self._rates.items()))}
        text = json.dumps(content, indent=1)
        (self.output / RATES).write_text(text + "\n")

    def save(
        self, name: str, header: Sequence[str], rows: Iterable[Sequence[Any]], figure: Figure
    ) -> None:
        """Write NAME.csv and NAME.png."""
        with (self.output / f"{name}.csv").open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(header)
            writer.writerows([_plain(value) for value in row] for row in rows)
        figure.savefig(self.output / f"{name}.png", dpi=DPI, metadata={"Software": None})


def _rates_of(tuned: Tuned) -> list[float | None]:
    both = zip(tuned.rates, tuned.steps, strict=True)
    return [float(f"{rate:.6g}") if math.isfinite(steps) else None for rate, steps in both]


def _plain(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value


def panels(titles: Sequence[str], x: str, y: str, **scales: str) -> tuple[Figure, list[Any]]:
    """A figure with a panel for each title, side by side; `scales` are `xscale`, `yscale`."""
    mpl.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False})
    width, height = PANEL_INCHES
    figure = Figure(figsize=(width * len(titles), height), layout="constrained")
    axes = list(figure.subplots(1, len(titles), sharey=True, squeeze=False)[0])
    for axis, title in zip(axes, titles, strict=True):
        axis.set(title=title, xlabel=x, **scales)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel(y)
    return figure, axes


def style(algorithm: str) -> Mapping[str, Any]:
    """A method's colour, the same in every figure."""
    return {"color": COLOURS[algorithm]}


def machine() -> str:
    """Where and when this runs, for the record."""
    cpu = platform.processor() or platform.machine()
    return f"{os.cpu_count()} cores ({cpu}), torch {torch.__version__}, {time.strftime('%Y-%m-%d')}"
