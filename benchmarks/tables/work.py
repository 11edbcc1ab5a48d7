"""One run of a cell: train, measure every peer's model and their mean, count what was sent."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.tables.cells import Cell, config_of
from peer.baseline import first_trainer
from peer.outcome import RunOutcome
from peer.simulator.learning import Simulation
from peer.simulator.memory import memory_of_a_swarm
from peer.simulator.run import simulate
from peer.simulator.stacked_run import StackedSimulation
from peer.training.trainer import Trainer
from relayswarm.config import RunConfig

LAST_FIVE = (0.92, 0.94, 0.96, 0.98, 1.0)  # of the run, after the rate's last decay
ON_THE_WAY = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.76, 0.84)
"""Of a run of which a figure is drawn, where it is measured besides."""
LAST_FIVE_SAMPLES = 1_000  # of the test set: for each of these evaluations


@dataclass(frozen=True, slots=True)
class Row:
    """What one seed of a cell came to; accuracies are 0 to 1.

    `last_five_*` are means over the last five evaluations: of the peer that is worst by it, over
    all peers, of the mean model. `models_per_step` are those that a peer sends, its optimizer steps
    being the steps: mean, and the busiest peer's. `seconds` are the processor's.
    """

    cell: str
    seed: int
    rate: float
    steps: int
    worst: float
    mean: float
    consensus: float
    last_five_worst: float
    last_five_mean: float
    last_five_consensus: float
    converged: bool
    models_per_step: float
    most_models_per_step: float
    bytes_sent: int
    seconds: float


COLUMNS = [field.name for field in fields(Row)]


@dataclass(frozen=True, slots=True)
class Point:
    """An evaluation on the way, as soon as every peer has done that `part` of the run; `steps` are
    those that every peer has done by then, `bytes_sent` what all have sent."""

    cell: str
    seed: int
    rate: float
    part: float
    steps: int
    worst: float
    mean: float
    consensus: float
    bytes_sent: int


POINT_COLUMNS = [field.name for field in fields(Point)]


def run(
    cell: Cell, rate: float, seed: int, data_dir: Path, *, curve: bool = False
) -> tuple[Row, list[Point]]:
    """All of it; of a `curve` also what is measured on the way. Raises DataError if the data are
    not there."""
    torch.set_num_threads(1)
    began = time.process_time()
    config = config_of(cell, rate, seed)
    watch = _Watch(config, _quick(config, data_dir), ON_THE_WAY if curve else ())
    with memory_of_a_swarm():
        outcome, consensus = _trained(config, data_dir, watch, one_by_one=cell.lattice)
    ends = [_accuracy(peer.metrics) for peer in outcome.peers]
    assert outcome.simulation is not None
    sent, local = outcome.simulation["models_sent_per_step"], cell.local_steps
    series = watch.last_five()
    row = Row(
        cell=cell.key,
        seed=seed,
        rate=rate,
        steps=cell.steps,
        worst=min(ends),
        mean=statistics.fmean(ends),
        consensus=consensus,
        last_five_worst=series.worst,
        last_five_mean=series.mean,
        last_five_consensus=series.consensus,
        converged=all(None not in peer.metrics.values() for peer in outcome.peers),
        models_per_step=sent["mean"] / local,
        most_models_per_step=sent["largest"] / local,
        bytes_sent=outcome.simulation["bytes_sent"],
        seconds=time.process_time() - began,
    )
    return row, watch.points(row) if curve else []


def validate(cell: Cell, rate: float, seed: int, data_dir: Path) -> float | None:
    """The mean over peers of their accuracy on samples held back; None if any model diverged."""
    torch.set_num_threads(1)
    config = config_of(cell, rate, seed, validation=True)
    outcome = simulate(config, data_dir, lambda _: None, stacked="on")
    if any(None in peer.metrics.values() for peer in outcome.peers):
        return None
    return statistics.fmean(_accuracy(peer.metrics) for peer in outcome.peers)


@dataclass(frozen=True, slots=True)
class Series:
    """Means over the last five evaluations."""

    worst: float
    mean: float
    consensus: float


NO_SERIES = Series(math.nan, math.nan, math.nan)


def _trained(
    config: RunConfig, data_dir: Path, watch: _Watch, *, one_by_one: bool
) -> tuple[RunOutcome, float]:
    """How it ended, and the accuracy of the mean model. Messages on the lattice stand next to the
    last one of their edge, so those peers are not stacked, but go `one_by_one`."""
    simulation: Simulation | StackedSimulation
    if one_by_one:
        simulation = Simulation(config, data_dir, watch.heard, mean_every=0)
    else:
        simulation = StackedSimulation(config, data_dir, watch.heard, stacking="on")
    watch.models = simulation.models
    outcome = simulation.run()
    first = first_trainer(config, data_dir, "cpu")
    return outcome, first.evaluate(simulation.models().mean(0))["accuracy"].value


@dataclass(frozen=True, slots=True)
class _Found:
    """Accuracies of all peers' models, and of their mean."""

    part: float
    steps: int
    bytes_sent: int
    of_peers: Sequence[float]
    of_mean: float


class _Watch:
    """Hears a simulation's events, and measures all models whenever every peer has done so much of
    the run as is to be measured at."""

    models: Callable[[], Tensor]  # the simulation's, shape (peers, elements)

    def __init__(self, config: RunConfig, trainer: Trainer, on_the_way: Sequence[float]) -> None:
        self._parts = [*on_the_way, *LAST_FIVE]
        self._steps = config.steps
        self._done: dict[str, int] = {}
        self._sent: dict[str, int] = {}
        self._peers, self._trainer = config.peers, trainer
        self._found: list[_Found] = []

    def heard(self, event: Mapping[str, Any]) -> None:
        """What a simulation tells."""
        if event["event"] != "step":
            return
        self._done[event["peer"]] = event["step"] + 1
        self._sent[event["peer"]] = event["bytes_sent"]
        if len(self._done) == self._peers:
            done = min(self._done.values())
            while self._parts and done >= max(1, round(self._parts[0] * self._steps)):
                self._found.append(self._measured(self._parts.pop(0), done))

    def _measured(self, part: float, done: int) -> _Found:
        models = self.models()
        same = bool((models == models[0]).all())
        found = [self._one(model) for model in (models[:1] if same else models)]
        of_peers = found * len(models) if same else found
        sent = sum(self._sent.values())
        return _Found(part, done, sent, of_peers, self._one(models.mean(0)))

    def _one(self, model: Tensor) -> float:
        return self._trainer.evaluate(model)["accuracy"].value

    def last_five(self) -> Series:
        """Nothing, if a peer stood still before the end."""
        if self._parts:
            return NO_SERIES
        last = self._found[-len(LAST_FIVE) :]
        series = zip(*(found.of_peers for found in last), strict=True)
        of_peers = [statistics.fmean(values) for values in series]
        of_means = statistics.fmean(found.of_mean for found in last)
        return Series(min(of_peers), statistics.fmean(of_peers), of_means)

    def points(self, row: Row) -> list[Point]:
        """All that was measured in the run of that row."""
        return [
            Point(
                cell=row.cell,
                seed=row.seed,
                rate=row.rate,
                part=found.part,
                steps=found.steps,
                worst=min(found.of_peers),
                mean=statistics.fmean(found.of_peers),
                consensus=found.of_mean,
                bytes_sent=found.bytes_sent,
            )
            for found in self._found
        ]


def _quick(config: RunConfig, data_dir: Path) -> Trainer:
    """It measures on fewer samples."""
    options = {**config.task.options, "test_samples": LAST_FIVE_SAMPLES}
    task = config.task.model_copy(update={"options": options})
    return first_trainer(config.model_copy(update={"task": task}), data_dir, "cpu")


def _accuracy(metrics: Mapping[str, float | None]) -> float:
    value = metrics["accuracy"]
    return 0.0 if value is None else value


def ended_alike(row: Row, other: Row) -> bool:
    """Whether two runs came to the same, however long they took. What was not measured is alike."""
    values, others = (astuple(replace(one, seconds=0.0)) for one in (row, other))
    return all(a == b or (a != a and b != b) for a, b in zip(values, others, strict=True))


def by_key(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of each cell, by seed."""
    cells: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: (row.cell, row.seed)):
        cells.setdefault(row.cell, []).append(row)
    return cells
