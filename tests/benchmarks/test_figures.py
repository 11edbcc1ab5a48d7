"""Each figure, tiny: it is drawn, its numbers are those that its claim speaks of, and rates once
tuned are found again."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest
import torch

from benchmarks.figures import (
    heterogeneity,
    local_steps,
    mean_estimation,
    scaling,
    social_network,
    theory,
)
from benchmarks.figures.__main__ import FIGURES
from benchmarks.figures.bench import Bench
from benchmarks.figures.heterogeneity import Comparison
from benchmarks.figures.scaling import Series
from benchmarks.figures.tuning import steps_to

DOCS = Path(__file__).parent.parent.parent / "docs"


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "figures", rounds=1)


def rows_of(bench: Bench, name: str) -> list[dict[str, str]]:
    assert (bench.output / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    with (bench.output / f"{name}.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_figure_2_counts_steps(bench: Bench) -> None:
    chosen = (Series("relaysgd", "chain", 4), Series("sgp", "exponential", 4))
    scaling.figure_2(bench, sizes=(4, 8), seeds=(0,), all_=chosen)
    rows = rows_of(bench, "figure-2")
    assert len(rows) == 2 * 2 * 2
    chain = [float(r["steps"]) for r in rows if r["graph"] == "chain" and r["zeta_squared"] == "1"]
    assert 6 <= chain[0] < chain[1] <= 20


def test_rates_once_tuned_are_found_again(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = (Series("relaysgd", "chain", 4),)
    scaling.figure_2(bench, sizes=(4,), seeds=(0,), all_=chosen)
    first = (bench.output / "figure-2.csv").read_text()
    monkeypatch.setattr("benchmarks.figures.bench.tune", None)
    scaling.figure_2(Bench(bench.output), sizes=(4,), seeds=(0,), all_=chosen)
    assert (bench.output / "figure-2.csv").read_text() == first
    with pytest.raises(TypeError):
        scaling.figure_2(Bench(bench.output, tuning=True), sizes=(4,), seeds=(0,), all_=chosen)


def test_figure_3_takes_random_spanning_trees(bench: Bench) -> None:
    social_network.figure_3(bench, trees=1, steps=60, whole=("dpsgd",))
    rows = {(row["algorithm"], row["on"]): row for row in rows_of(bench, "figure-3")}
    assert set(rows) == {("relaysgd", "tree 0"), ("dpsgd", "whole graph")}
    relay = rows["relaysgd", "tree 0"]
    assert float(relay["steps"]) < 40
    assert 0 < float(relay["rate_with_noise"]) <= float(relay["rate"])
    costs = [social_network.spanning_tree_costs(seed).graph for seed in (0, 1)]
    assert costs[0].edges != costs[1].edges


def test_figure_5_falls_like_one_over_n(bench: Bench) -> None:
    theory.figure_5(bench, sizes={"chain": (4, 8), "star": (64, 128)})
    rows = rows_of(bench, "figure-5")
    scaled = {(row["tree"], row["peers"]): float(row["peers_times_rho"]) for row in rows}
    assert all(0.5 < scaled["chain", n] < 0.7 for n in ("4", "8"))
    assert 1.6 < scaled["star", "64"] < scaled["star", "128"] < 1.8


def test_figure_6_agrees_with_propagation(bench: Bench) -> None:
    theory.figure_6(bench, sizes=(4, 8))
    rows = rows_of(bench, "figure-6")
    assert all(row["factor"] == row["by_propagation"] for row in rows)
    assert {row["factor"] for row in rows if row["tree"] == "chain" and row["peers"] == "4"} == {
        "1.5"
    }


def test_comparisons_show_who_plateaus(bench: Bench) -> None:
    """The form of figures 7, 8 and 10."""
    methods = (("relaysgd", "chain"), ("relaysgd-grad", "chain"))
    what = Comparison("tiny", methods, shown=150)
    heterogeneity.compare(bench, what, n=4, zetas=(0.0, 1.0))
    last = {
        (row["algorithm"], row["zeta_squared"]): float(row["suboptimality"])
        for row in rows_of(bench, "tiny")
        if row["step"] == "150"
    }
    assert last["relaysgd", "1"] < 1e-15
    assert last["relaysgd-grad", "1"] > 1e3 * last["relaysgd", "1"]
    assert last["relaysgd-grad", "0"] < 1e-15


def test_figure_9_comes_near_the_bound(bench: Bench) -> None:
    mean_estimation.figure_9(bench, sizes=(4,), steps=40, repeats=300)
    last = rows_of(bench, "figure-9")[-1]
    assert float(last["relaysum"]) == pytest.approx(float(last["one_over_nT"]), rel=0.25)


def test_local_steps_are_paid_with_bias(bench: Bench) -> None:
    local_steps.figure_local_steps(bench, counts=(1, 16), n=4, models=(900, 20))
    rows = rows_of(bench, "local-steps")
    bias = {(r["algorithm"], r["local_steps"]): float(r["bias_at_fixed_rate"]) for r in rows}
    for algorithm in ("relaysgd", "d2", "gradient-tracking", "local-sgd"):
        assert bias[algorithm, "1"] < 0.05 * bias[algorithm, "16"]
        assert bias[algorithm, "16"] == pytest.approx(bias["local-sgd", "16"], rel=0.02)
    sent = {round(float(row["models_sent_per_peer"])) for row in rows}
    assert all(15 <= models <= 25 for models in sent)
    assert all(math.isfinite(float(row["error_with_noise"])) for row in rows)


def test_steps_are_counted_to_where_a_curve_stays_below() -> None:
    curve = torch.tensor([[3.0, 3.0, 3.0], [0.5, 0.5, math.nan], [2.0, 0.4, 0.1], [0.1, 0.3, 2.0]])
    assert steps_to(curve, 1.0).tolist() == [3.0, 1.0, math.inf]


def test_committed_rates_are_those_of_every_tuned_figure() -> None:
    rates = json.loads((DOCS / "figures" / "rates.json").read_text())["rates"]
    for series in scaling.ALL:
        for n in scaling.SIZES:
            found = rates[f"figure-2/{series.algorithm}/{series.graph}/{n}"]
            assert len(found) == len(scaling.SEEDS) * len(scaling.ZETA_SQUARED)
    assert {key.split("/")[0] for key in rates} == {
        "figure-2", "figure-3", "figure-7", "figure-8", "figure-10"
    }  # fmt: skip


def test_the_page_shows_every_figure() -> None:
    page = (DOCS / "figures.md").read_text()
    for name in FIGURES:
        assert f"figures/{name}.png" in page
        assert f"figures/{name}.csv" in page
        assert (DOCS / "figures" / f"{name}.png").exists()
