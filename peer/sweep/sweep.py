"""A sweep from its grid to its table: what is missing is run, the rest is read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from peer.manifest import hardware, versions
from peer.simulator.stacked_training import Stacking
from peer.sweep.budget import check_budgets
from peer.sweep.cell import Job, Row, run_cell
from peer.sweep.engine import Engine, check_engine, run_all
from peer.sweep.grid import Axis, Cell
from peer.sweep.picture import draw
from peer.sweep.store import CELLS, PICTURE, SWEEP, TUNED, Store, as_json
from peer.sweep.tuning import TARGET, TuningJob, row_columns, tune, with_rate

Notice = Callable[[str, str, int, int], None]
"""Told of each finished piece: what it is, which one, how many are done, of how many."""


@dataclass(frozen=True)
class Options:
    """How a sweep is run. `target` is the suboptimality to reach; None: 1e-6 when tuning."""

    output: Path
    data_dir: Path | None = None
    jobs: int = 1
    engine: Engine = "local"
    budgets: dict[str, float] | None = None
    tune: bool = False
    target: float | None = None
    stacked: Stacking = "auto"


def sweep(
    cells: Sequence[Cell], axes: Sequence[Axis], options: Options, notice: Notice
) -> tuple[list[Row], list[str]]:
    """Run what has not been run yet, write the table; returns the rows and the files written.

    Raises ConfigError, before anything is run, for an unusable engine or folder, or a combination
    that is over budget.
    """
    check_engine(options.engine)
    check_budgets(cells, options.budgets or {})
    store = Store(options.output)
    store.write(SWEEP, as_json(_about(cells, axes, options)))
    jobs = _jobs(cells, options, store, notice)
    found: dict[str, Row | None] = {job.key: store.find(CELLS, job.key) for job in jobs}
    missing = [job for job in jobs if found[job.key] is None]
    done = len(jobs) - len(missing)
    for job, row in run_all(run_cell, missing, engine=options.engine, workers=options.jobs):
        store.keep(CELLS, job.key, row)
        found[job.key] = row
        done += 1
        notice("run", f"{job.cell.combination}, seed {job.cell.config.seed}", done, len(jobs))
    rows = [known for job in jobs if (known := found[job.key]) is not None]
    return rows, _publish(rows, axes, store)


def _jobs(cells: Sequence[Cell], options: Options, store: Store, notice: Notice) -> list[Job]:
    if not options.tune:
        plain = Job(cells[0], options.data_dir, options.target, None, options.stacked)
        return [replace(plain, cell=cell) for cell in cells]
    found = _tuned(cells, options, store, notice)
    target = options.target or TARGET
    jobs = []
    for cell in cells:
        tuning = found[cell.combination]
        tuned = replace(cell, config=with_rate(cell.config, tuning["rate"]))
        follows = target if tuning["procedure"] == "bisection" else None
        columns = row_columns(tuning)
        jobs.append(Job(tuned, options.data_dir, follows, columns, options.stacked))
    return jobs


def _tuned(
    cells: Sequence[Cell], options: Options, store: Store, notice: Notice
) -> dict[str, dict[str, Any]]:
    """For each combination what its tuning found."""
    first: dict[str, TuningJob] = {}
    for cell in cells:
        job = TuningJob(cell, options.data_dir, options.target or TARGET, options.stacked)
        first.setdefault(cell.combination, job)
    found = {name: store.find(TUNED, each.key) for name, each in first.items()}
    missing = [job for name, job in first.items() if found[name] is None]
    done = len(first) - len(missing)
    for tuning_job, result in run_all(tune, missing, engine=options.engine, workers=options.jobs):
        store.keep(TUNED, tuning_job.key, result)
        found[tuning_job.cell.combination] = result
        done += 1
        notice("tuning", tuning_job.cell.combination, done, len(first))
    tuned = {name: result for name, result in found.items() if result is not None}
    store.write("tuning.json", as_json(list(tuned.values())))
    return tuned


def _publish(rows: Sequence[Row], axes: Sequence[Axis], store: Store) -> list[str]:
    files = store.tabulate(rows)
    picture = draw(rows, [axis.name for axis in axes])
    if picture is not None:
        store.write(PICTURE, picture)
        files.append(PICTURE)
    return files


def _about(cells: Sequence[Cell], axes: Sequence[Axis], options: Options) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "axes": {axis.name: list(axis.values) for axis in axes},
        "seeds": sorted({cell.config.seed for cell in cells}),
        "budgets": options.budgets or {},
        "tuned": options.tune,
        "cells": len(cells),
        "first_config": cells[0].config.model_dump(mode="json"),
        "versions": versions(),
        "hardware": hardware(),
    }
