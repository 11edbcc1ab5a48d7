"""Sweeps: rows, files, resuming, budgets, engines."""

from __future__ import annotations

import csv
import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from peer.sweep import sweep as sweep_module
from peer.sweep.cell import Job, run_cell
from peer.sweep.engine import check_engine
from peer.sweep.store import as_csv, as_parquet
from relayswarm.errors import ConfigError

AXES = ("algorithm=relaysgd,d2", "graph=chain,ring")


def test_rows_say_what_was_run_and_what_it_cost(swept, tmp_path: Path) -> None:
    done = swept(tmp_path, "algorithm=relaysgd,sgp", seeds=2)
    assert [(row["algorithm"], row["seed"]) for row in done.rows] == [
        ("relaysgd", 0), ("relaysgd", 1), ("sgp", 0), ("sgp", 1),
    ]  # fmt: skip
    for row in done.rows:
        assert row["lr"] == 0.2
        assert row["gradient_evaluations"] == 80
        assert row["models_sent_per_step_largest"] == 2.0
        assert row["message_rounds_per_step"] == (1.0 if row["algorithm"] == "relaysgd" else 2.0)
        assert row["worst_suboptimality"] >= row["mean_suboptimality"]
        assert (
            row["mean_suboptimality"] >= (1 - 1e-12) * row["consensus_suboptimality"] > 0
        )  # Jensen


def test_the_table_and_the_picture_are_written(swept, tmp_path: Path) -> None:
    done = swept(tmp_path, "peers=2,4")
    with (tmp_path / "results.csv").open(newline="") as file:
        read = list(csv.DictReader(file))
    assert [row["peers"] for row in read] == ["2", "4"]
    assert [float(row["mean_loss"]) for row in read] == [row["mean_loss"] for row in done.rows]
    assert (tmp_path / "results.png").read_bytes().startswith(b"\x89PNG")
    assert ("results.parquet" in done.files) == (find_spec("pyarrow") is not None)
    assert json.loads((tmp_path / "sweep.json").read_text())["axes"] == {"peers": ["2", "4"]}


def test_rows_with_other_columns_share_a_table() -> None:
    assert as_csv([{"a": 1, "b": None}, {"c": "x,y"}]) == b'a,b,c\r\n1,,\r\n,,"x,y"\r\n'


def test_parquet_keeps_the_types() -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    arrow = pytest.importorskip("pyarrow")
    content = as_parquet([{"a": 1, "b": 0.5}, {"a": 2, "c": "x"}])
    table = parquet.read_table(arrow.BufferReader(content))
    assert table.to_pydict() == {"a": [1, 2], "b": [0.5, None], "c": [None, "x"]}


def test_a_half_done_sweep_goes_on_where_it_was_cut_off(
    swept, cells, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third run of four dies; the second attempt runs that one and the fourth alone."""
    ran: list[str] = []
    fatal = cells(*AXES)[2].combination

    def dying(job: Job) -> dict[str, object]:
        ran.append(job.cell.combination)
        if len(ran) == 3:
            raise KeyboardInterrupt
        return run_cell(job)

    monkeypatch.setattr(sweep_module, "run_cell", dying)
    with pytest.raises(KeyboardInterrupt):
        swept(tmp_path, *AXES)
    assert ran[2] == fatal
    assert not (tmp_path / "results.csv").exists()
    done = swept(tmp_path, *AXES)
    assert ran[3:] == [cell.combination for cell in cells(*AXES)[2:]]
    assert [notice[2:] for notice in done.notices] == [(3, 4), (4, 4)]
    fresh = swept(tmp_path / "fresh", *AXES)
    for row, other in zip(done.rows, fresh.rows, strict=True):
        assert row | {"wall_seconds": 0} == other | {"wall_seconds": 0}


def test_a_damaged_cell_is_run_again(swept, cells, tmp_path: Path) -> None:
    first = swept(tmp_path, "graph=chain,ring")
    damaged = tmp_path / "cells" / f"{cells('graph=chain,ring')[1].key}.json"
    damaged.write_text(damaged.read_text()[:-20])
    second = swept(tmp_path, "graph=chain,ring")
    assert len(second.notices) == 1
    assert second.rows[1]["mean_loss"] == first.rows[1]["mean_loss"]


def test_what_is_over_budget_is_refused_by_name_before_anything_is_run(
    swept, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        swept(
            tmp_path,
            "algorithm=relaysgd,d2",
            "graph=chain,star",
            budgets={"models_per_step": 2, "message_rounds_per_step": 1},
        )
    assert caught.value.problem == (
        "algorithm=relaysgd, graph=star needs 3 models per step; "
        "algorithm=d2, graph=star needs 3 models per step"
    )
    assert not list(tmp_path.iterdir())


def test_rounds_are_budgeted_too(swept, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="algorithm=sgp needs 2 message rounds per step"):
        swept(tmp_path, "algorithm=relaysgd,sgp", budgets={"message_rounds_per_step": 1})


def test_random_partners_are_within_the_budget_that_they_keep_on_average(
    swept, tmp_path: Path
) -> None:
    overrides = ("topology.graph=ring", "peers=8")
    budgets = {"models_per_step": 2.0}
    rows = swept(tmp_path, "algorithm=swarmsgd", overrides=overrides, budgets=budgets).rows
    assert rows[0]["peers_finished"] == 8


@pytest.mark.slow
@pytest.mark.timeout(300)  # two processes import torch
def test_processes_give_the_same_rows(swept, tmp_path: Path) -> None:
    alone = swept(tmp_path / "a", "graph=chain,ring").rows
    beside = swept(tmp_path / "b", "graph=chain,ring", jobs=2).rows
    for row, other in zip(alone, beside, strict=True):
        assert row | {"wall_seconds": 0} == other | {"wall_seconds": 0}


@pytest.mark.timeout(300)
def test_an_error_in_a_process_arrives_whole(swept, tmp_path: Path) -> None:
    overrides = ("task.options={dimension = 0}",)
    with pytest.raises(ConfigError, match="dimension"):
        swept(tmp_path, "graph=chain,ring", jobs=2, overrides=overrides)


def test_an_unknown_engine_is_refused() -> None:
    with pytest.raises(ConfigError, match="known: local, ray"):
        check_engine("slurm")


@pytest.mark.skipif(find_spec("ray") is None, reason="`make test-ray` has Ray")
@pytest.mark.filterwarnings("default")
@pytest.mark.timeout(600)  # Ray starts, and torch is imported in all processes
def test_ray_gives_the_rows_that_processes_give(swept, tmp_path: Path) -> None:
    axes = ("algorithm=relaysgd,d2", "graph=chain,ring")
    here = swept(tmp_path / "a", *axes, seeds=2, jobs=2).rows
    there = swept(tmp_path / "b", *axes, seeds=2, engine="ray").rows
    assert len(here) == 8
    for row, other in zip(here, there, strict=True):
        assert row | {"wall_seconds": 0} == other | {"wall_seconds": 0}


@pytest.mark.skipif(find_spec("ray") is None, reason="`make test-ray` has Ray")
@pytest.mark.filterwarnings("default")
@pytest.mark.timeout(600)
def test_an_error_on_ray_arrives_whole(swept, tmp_path: Path) -> None:
    overrides = ("task.options={dimension = 0}",)
    with pytest.raises(ConfigError, match="dimension"):
        swept(tmp_path, "graph=chain,ring", engine="ray", overrides=overrides)
