"""The tables of docs/choosing.md are what the benchmark makes of them, on every machine."""

from __future__ import annotations

from benchmarks import choosing


def test_the_tables_are_fresh() -> None:
    """Whatever stands in them by now."""
    text = choosing.PAGE.read_text(encoding="utf-8")
    assert text.count("by benchmarks/choosing.py -->") == 2
    stale = text
    for row in ("| `chain` | 15 |", "| `relaysgd` | 1.9 |"):
        assert row in text
        stale = stale.replace(row, row.replace("1", "7"))
    assert choosing.filled(stale) == text, "stale: python benchmarks/choosing.py"
