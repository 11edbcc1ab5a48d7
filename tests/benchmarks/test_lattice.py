"""The lattice beside float32, in short: what is compared differs in the wire format alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import lattice
from benchmarks.lattice import FLOAT32, LATTICE, METHODS, Case


@pytest.mark.parametrize("method", range(len(METHODS)), ids=[m.name for m in METHODS])
def test_pairs_differ_in_the_wire_format_alone(method: int) -> None:
    plain, other = (
        Case("digits", method, 0.1, wire, 3).config().model_dump() for wire in (FLOAT32, LATTICE)
    )
    differing = {
        f"{section}.{name}"
        for section in plain
        if isinstance(plain[section], dict)
        for name in plain[section]
        if plain[section][name] != other[section][name]
    }
    assert len(differing) == 1
    assert differing <= {"transport.wire_format", "algorithm.quantize"}
    assert plain["faults"]["drop"] == 0.1


def test_a_pair_of_short_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = [replace(m, settings=(*m.settings, "steps=4", "peers=4")) for m in METHODS]
    monkeypatch.setattr(lattice, "METHODS", short)
    seeds = (1, 2)
    cases = [Case("digits", 0, 0.0, wire, seed) for seed in seeds for wire in (FLOAT32, LATTICE)]
    ends = {case: lattice.simulated(case, None) for case in cases}
    row = lattice._paired("digits", 0, 0.0, seeds, ends)
    written = row["messages_by_bits"]
    edges = 2 * 3  # of a tree of 4, in either direction
    assert written["0"] == 2 * 2 * edges, "two of each edge and seed, before its distance is known"
    assert written["8"] == 2 * 2 * edges, "the other two steps"
    assert len(row["points"]) == 2
    plain = ends[cases[0]].payload_bytes
    assert plain == 4 * edges * 4 * 21_546
    assert 0.25 < row["payload_ratio"] < 1
    lattice.plot({"accuracy": [row]}, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
