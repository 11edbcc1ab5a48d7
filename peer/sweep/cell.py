"""Runs one cell of a sweep and makes a row of it. Called in worker processes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch

from peer.baseline import evaluate_mean, first_trainer
from peer.outcome import Metrics, RunOutcome, mean, worst
from peer.simulator.run import simulate
from peer.simulator.stacked_training import Stacking
from peer.sweep.grid import Cell
from relayswarm.config import RunConfig

Row: TypeAlias = dict[str, Any]
"""Column -> number, text, or None where there is no number."""

TARGET_METRIC = "suboptimality"


@dataclass(frozen=True, slots=True)
class Job:
    """A cell to run. With a `target` the row says after how many steps the mean of the models was
    below it for good; `tuning` are columns about how its rate was found."""

    cell: Cell
    data_dir: Path | None = None
    target: float | None = None
    tuning: Mapping[str, Any] | None = None
    stacked: Stacking = "auto"

    @property
    def key(self) -> str:
        """Of the file that keeps its row."""
        return self.cell.key if self.target is None else f"{self.cell.key}-{self.target:g}"


@dataclass(frozen=True, slots=True)
class Result:
    """How a run ended. `steps_to_target` is None if it did not get there, or there is none."""

    outcome: RunOutcome
    consensus: Metrics
    steps_to_target: int | None


def run_cell(job: Job) -> Row:
    """Simulate the cell; its row of the table. Raises ConfigError and DataError."""
    cell, config = job.cell, job.cell.config
    started = time.perf_counter()
    result = run(config, job.data_dir, job.target, job.stacked)
    row: Row = {**cell.axes, "seed": config.seed}
    row |= {"algorithm": config.algorithm.name, "graph": config.topology.graph}
    row |= {"tree": config.topology.tree, "task": config.task.name, "peers": config.peers}
    row |= {"steps": config.steps, "lr": base_rate(config, job.data_dir), **(job.tuning or {})}
    row |= {"peers_finished": len(result.outcome.peers)}
    row |= flat_cost(result.outcome.simulation or {})
    row |= final_metrics(result)
    if job.target is not None:
        row["steps_to_target"] = result.steps_to_target
    return row | {"wall_seconds": round(time.perf_counter() - started, 3)}


def run(
    config: RunConfig,
    data_dir: Path | None,
    target: float | None = None,
    stacked: Stacking = "auto",
) -> Result:
    """Simulate in this process, with a single thread."""
    torch.set_num_threads(1)
    above = 0  # steps after which the mean was last seen above the target

    def watch(event: dict[str, Any]) -> None:
        nonlocal above
        if event["event"] == "mean_model" and target is not None:
            value = event["metrics"].get(TARGET_METRIC)
            above = above if value is not None and value <= target else event["step"]

    every = 0 if target is None else 1
    outcome = simulate(config, data_dir, watch, mean_every=every, stacked=stacked)
    models = [peer.model for peer in outcome.peers if peer.model is not None]
    first = first_trainer(config, data_dir, "cpu") if models else None
    consensus = first and evaluate_mean(first, models)
    reached = target is not None and above < config.steps and bool(models)
    return Result(outcome, consensus or {}, above + 1 if reached else None)


def base_rate(config: RunConfig, data_dir: Path | None) -> float:
    """The learning rate before schedule and correction: the config's or the task's."""
    return config.optimizer.lr or first_trainer(config, data_dir, "cpu").settings.lr


def flat_cost(cost: Mapping[str, Any]) -> Row:
    """Nested figures as columns such as `models_sent_per_step_mean`."""
    row: Row = {}
    for name, value in cost.items():
        if isinstance(value, Mapping):
            row |= {f"{name}_{part}": number for part, number in value.items()}
        else:
            row[name] = value
    return row


def final_metrics(result: Result) -> Row:
    """Of each metric the worst peer's, the peers' mean, and the mean model's."""
    sites, row = result.outcome.sites, Row()
    for name in sites[0].metrics if sites else ():
        values = [peer.metrics.get(name) for peer in sites]
        row[f"worst_{name}"] = worst(name, values)
        row[f"mean_{name}"] = mean(values)
        row[f"consensus_{name}"] = result.consensus.get(name)
    return row
