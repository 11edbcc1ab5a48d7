"""The papers' tables, tiny: what is done is kept and not done again, and the page says it."""

from __future__ import annotations

import gzip
import math
import statistics
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import paper_tables
from benchmarks.tables import cells, page, tuning, work
from benchmarks.tables.catalogue import TABLES, Line, Table
from benchmarks.tables.cells import SEQUENTIAL, TREES, Cell, config_of
from benchmarks.tables.store import Store
from peer.config import check_algorithm
from relayswarm.config import DataConfig
from relayswarm.partitioning import partition
from relayswarm.task import Site

ROOT = Path(__file__).parents[2]
CELL = Cell("relaysgd", TREES, True, 0.1, epochs=3, peers=4)
TABLE = Table("tiny", "Tiny", "nothing", "last_five_worst", [Line("x", TREES, {"a": CELL})])


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Noise of which the class is the brightness."""
    for name, size in (("train", 700), ("t10k", 60)):
        labels = np.arange(size) % 10
        images = (
            np.random.default_rng(0).integers(0, 50, (size, 28, 28)) + 20 * labels[:, None, None]
        )
        for part, values in (("images-idx3", images), ("labels-idx1", labels)):
            header = bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
            path = tmp_path / f"{name}-{part}-ubyte.gz"
            path.write_bytes(gzip.compress(header + values.astype(np.uint8).tobytes(), 1))
    for name, value in (
        ("TRAIN_SAMPLES", 640),
        ("VALIDATION", 60),
        ("TEST_SAMPLES", 60),
    ):
        monkeypatch.setattr(cells, name, value)
    monkeypatch.setattr(work, "LAST_FIVE_SAMPLES", 30)
    return tmp_path


def test_a_table_is_tuned_run_and_resumed(data: Path, tmp_path: Path, capsys) -> None:
    folder = tmp_path / "out"
    paper_tables.run([TABLE], folder, data, seeds=2)
    store = Store(folder)
    rows = store.rows()
    assert [row.seed for row in rows] == [0, 1]
    trials = dict(store.trials(CELL))
    rate = store.rate(CELL)
    assert rate is not None
    assert len(trials) >= 3
    assert trials[rate] == max(score for score in trials.values() if score is not None)
    for row in rows:
        assert row.steps == 30
        assert 0 <= row.worst <= row.mean <= 1
        assert row.last_five_worst <= row.last_five_mean
        assert row.most_models_per_step <= 2
    told = capsys.readouterr().out
    paper_tables.run([TABLE], folder, data, seeds=2)
    assert capsys.readouterr().out == "" != told
    assert store.rows() == rows
    markdown = page.as_markdown(TABLE, work.by_key(rows))
    assert f"| x | {TREES} | a | {rate:g} | 2 |" in markdown


def test_a_rate_at_which_a_seed_diverges_is_halved_and_its_rows_no_longer_count(
    data: Path, tmp_path: Path
) -> None:
    store, cell = Store(tmp_path / "out"), replace(CELL, epochs=1)
    store.add_rate(cell, {"rate": 1e6, "trials": []})
    lossy = replace(cell, drop=0.5)
    paper_tables.carry_out(paper_tables.Item(lossy, 0), store, data)
    assert store.has(lossy, 0)
    assert "diverged" in paper_tables.carry_out(paper_tables.Item(cell, 0), store, data)
    assert store.rate(cell) == store.rate(lossy) == 5e5
    assert store.rows() == []


def test_what_another_process_has_claimed_is_left_to_it(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.claim("a/b") as first, store.claim("a/b") as second, store.claim("c") as other:
        assert (first, second, other) == (True, False, True)


def test_lattice_and_sequential_runs(data: Path) -> None:
    swarm = Cell("swarmsgd", "complete", epochs=1, peers=4, local_steps=2, lattice=True)
    row, _ = work.run(swarm, 0.05, 0, data)
    assert 0 < row.last_five_worst <= row.last_five_mean
    exact, _ = work.run(replace(swarm, lattice=False), 0.05, 0, data)
    assert row.bytes_sent < 0.5 * exact.bytes_sent
    assert work.run(replace(SEQUENTIAL, epochs=1), 0.05, 0, data)[0].bytes_sent == 0


@pytest.mark.parametrize("lattice", [False, True])
def test_a_run_of_a_figure_is_measured_on_the_way(
    data: Path, tmp_path: Path, lattice: bool
) -> None:
    cell = Cell("swarmsgd", "complete", epochs=4, peers=4, local_steps=2, lattice=lattice)
    row, points = work.run(cell, 0.05, 0, data, curve=True)
    assert len(points) == len(work.ON_THE_WAY) + len(work.LAST_FIVE)
    assert points[0].steps < points[-1].steps == row.steps
    assert points[0].mean < points[-1].mean
    assert row.last_five_mean == pytest.approx(
        statistics.fmean(point.mean for point in points[-len(work.LAST_FIVE) :])
    )
    sent = [point.bytes_sent for point in points]
    assert sent == sorted(sent)
    assert sent[0] < sent[-1] <= row.bytes_sent
    store = Store(tmp_path / "out")
    store.add(row, points)
    halved = replace(points[-1], rate=0.1)
    store.add(replace(row, seed=1), [*points, halved])  # again, as if cut off before its row
    kept = [(point.part, point.steps) for point in store.points(cell)]
    assert kept == [(point.part, point.steps) for point in points]
    assert work.run(cell, 0.05, 0, data)[1] == []


@pytest.mark.parametrize(("method", "topology"), [("relaysgd", "chain"), ("dpsgd-qgm", "ring")])
def test_texts_are_learnt_with_adam(data: Path, method: cells.Method, topology: str) -> None:
    """The class is the first word."""
    for name, size in (("train.csv", 700), ("test.csv", 60)):
        lines = (f"{k % 4 + 1},word{k % 4} is news number {k}" for k in range(size))
        (data / name).write_text("\n".join(lines) + "\n")
    cell = Cell(method, topology, alpha=1.0, epochs=4, peers=4, task="ag-news")
    config = config_of(cell, 0.01, 0)
    assert (config.optimizer.name, config.optimizer.schedule) == ("adam", "constant")
    assert cell.steps == 20
    row, _ = work.run(cell, 0.01, 0, data)
    assert row.worst > 0.9


def test_a_diverged_rate_is_never_the_best(data: Path) -> None:
    found = tuning.tune(replace(CELL, epochs=1), 1e6, data)
    assert found["rate"] < 1e6
    assert dict(found["trials"])[1e6] is None


def test_runs_done_again_are_held_against_those_of_the_page() -> None:
    row = work.Row(
        "a", 0, 0.1, 9, 0.5, 0.6, 0.7, math.nan, math.nan, math.nan, False, 2.0, 2.0, 8, 1.0
    )
    rows = [row, replace(row, seed=1), replace(row, seed=2)]
    slower, other = replace(row, seconds=3.0), replace(row, seed=1, worst=0.51)
    told = paper_tables.beside(rows, [slower, other]).splitlines()
    assert told[0].startswith("1 of 2 runs ended with the same digits")
    assert told[1:] == ["  a, seed 1: worst 50.00%, there 51.00%"]


def test_every_cell_of_every_table_is_a_config_of_its_own() -> None:
    every = [cell for table in TABLES.values() for cell in table.cells]
    assert len({cell.key for cell in every}) == len(set(every))
    for cell in every:
        check_algorithm(config_of(cell, 0.1, 0))


def test_there_is_a_cut_of_the_data_for_every_cell() -> None:
    """Of ten classes of one size."""
    cells = {cell for table in TABLES.values() for cell in table.cells}
    labels = np.repeat(np.arange(10), 2_000)
    for peers, alpha in {(cell.peers, cell.alpha) for cell in cells if cell.task != "ag-news"}:
        site = Site(
            shard=0, shards=peers, seed=0, alpha=alpha, min_samples=DataConfig().min_samples
        )
        assert len(partition(labels, site).shards) == peers


def test_committed_rates_are_the_best_of_their_trials() -> None:
    store = Store(ROOT / "docs" / "results")
    for cell in {cell.tuned_as() for table in TABLES.values() for cell in table.cells}:
        rate, scores = store.rate(cell), dict(store.trials(cell))
        if rate is not None:
            tuned = rate * 2 ** store.halvings(cell)
            assert scores[tuned] == max(score for score in scores.values() if score is not None)


def test_the_page_is_fresh(tmp_path: Path) -> None:
    results = ROOT / "docs" / "results"
    copy = tmp_path / "results.md"
    copy.write_text((ROOT / "docs" / "results.md").read_text())
    folder = tmp_path / "results"
    folder.mkdir()
    for name in ("rows.csv", "rates.json"):
        (folder / name).write_bytes((results / name).read_bytes())
    page.write(copy, Store(folder))
    assert copy.read_text() == (ROOT / "docs" / "results.md").read_text()
