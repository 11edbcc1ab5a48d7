"""Daemons in one process whose batches are a sleep: real exchanges, in short."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.scaling import GRAPHS, measure, plot, table, verdict


@pytest.mark.parametrize("method", GRAPHS)
def test_a_batch_takes_its_sleep_and_an_exchange(method: str) -> None:
    row = measure(method, 4, steps=4, sleep_s=0.02)
    assert (row["method"], row["peers"]) == (method, 4)
    assert row["seconds_per_batch"] > 0.02
    assert row["cores_busy"] > 0


def test_the_table_compares_each_method_with_itself(tmp_path: Path) -> None:
    seconds = {("swarmsgd", 4): (1.0, 1.2, 1.1), ("swarmsgd", 32): (1.0, 1.32, 9.0)}
    seconds |= {("dpsgd", 4): (2.0, 2.0, 2.0), ("dpsgd", 32): (3.0, 3.0, 3.0)}
    rows = [
        {"method": method, "peers": peers, "seconds_per_batch": value, "cores_busy": 0.5}
        for (method, peers), values in seconds.items()
        for value in values
    ]
    medians = table(rows)
    ratios = {(row["method"], row["peers"]): row["ratio"] for row in medians}
    assert ratios["swarmsgd", 32] == pytest.approx(1.2)
    assert ratios["dpsgd", 32] == pytest.approx(1.5)
    assert verdict(medians).startswith("swarmsgd flat within 10 %: MISSED")
    assert ": met" in verdict([row for row in medians if row["peers"] == 4])
    plot(medians, 0.5, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
