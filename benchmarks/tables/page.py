"""The tables of docs/results.md and its pictures, from the rows, the curves and the rates.

The page is written by hand but for what stands between `<!-- table NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks.figures.bench import DPI
from benchmarks.tables import pictures
from benchmarks.tables.catalogue import TABLES, Line, Table
from benchmarks.tables.cells import Cell
from benchmarks.tables.store import Store
from benchmarks.tables.work import Row, by_key

PRINTED = {
    "last_five_worst": "the worst peer's mean over the last five evaluations",
    "last_five_mean": "the peers' mean over the last five evaluations",
    "mean": "the mean of the peers' last models",
    "worst": "the worst peer's last model",
}
_PLACE = re.compile(r"(<!-- table (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def write(page: Path, store: Store) -> None:
    """Fill the tables of the page, and draw the pictures beside the rows."""
    rows = by_key(store.rows())
    text = page.read_text()
    page.write_text(_PLACE.sub(lambda m: m[1] + as_markdown(TABLES[m[2]], rows) + m[3], text))
    for name, figure in pictures.all_of(store, rows).items():
        figure.savefig(store.folder / name, dpi=DPI, metadata={"Software": None})


def as_markdown(table: Table, rows: Mapping[str, Sequence[Row]]) -> str:
    """What the paper prints, with its own numbers beside; then everything measured."""
    printed = [_printed(table, line, rows) for line in table.lines]
    told = f"{PRINTED[table.printed]}, %, mean ± standard deviation over the seeds."
    if table.paper:
        told = f"Printed, as in the paper: {told} In brackets what the paper has: {table.paper}."
    else:
        told = f"Printed: {told}"
    parts = [
        f"\n{told}\n",
        _grid(["method", "topology", *table.columns], printed),
    ]
    details = [
        _detail(line, ", ".join(columns), cell, rows[cell.key])
        for line in table.lines
        for cell, columns in _columns(line).items()
        if cell.key in rows
    ]
    if details:
        seconds = sum(row.seconds for cell in table.cells for row in rows.get(cell.key, ()))
        parts += [
            f"\nAll that was measured ({seconds / 60:.0f} minutes of a processor):\n",
            _grid(DETAILS, details),
        ]
    return "\n".join(parts) + "\n"


DETAILS = [
    "method",
    "topology",
    "column",
    "rate",
    "seeds",
    "worst peer",
    "mean of peers",
    "mean model",
    "last five: worst",
    "last five: mean",
    "last five: mean model",
    "models sent a step",
    "MB sent a peer",
]


def _columns(line: Line) -> dict[Cell, list[str]]:
    """Each cell once, with all columns that it stands in."""
    found: dict[Cell, list[str]] = {}
    for column, cell in line.cells.items():
        found.setdefault(cell, []).append(column)
    return found


def _printed(table: Table, line: Line, rows: Mapping[str, Sequence[Row]]) -> list[str]:
    words = [line.label, line.topology]
    for column in table.columns:
        cell = line.cells.get(column)
        found = rows.get(cell.key, ()) if cell else ()
        value = _value(found, lambda row: getattr(row, table.printed)) if found else "not run"
        paper = line.paper.get(column)
        words.append(value + (f" ({paper})" if paper else ""))
    return words


def _detail(line: Line, column: str, cell: Cell, found: Sequence[Row]) -> list[str]:
    names = [of + name for of in ("", "last_five_") for name in ("worst", "mean", "consensus")]
    values = [_value(found, lambda row, name=name: getattr(row, name)) for name in names]
    sent = f"{found[0].models_per_step:.2f}, at most {found[0].most_models_per_step:.2f}"
    megabytes = statistics.fmean(row.bytes_sent for row in found) / cell.peers / 1e6
    rate, seeds = f"{found[0].rate:g}", str(len(found))
    return [line.label, line.topology, column, rate, seeds, *values, sent, f"{megabytes:.0f}"]


def _value(rows: Sequence[Row], of: Callable[[Row], float]) -> str:
    """In percent; a single seed has no deviation, and where models diverged there is no mean."""
    diverged = sum(not row.converged for row in rows)
    if diverged:
        return f"diverges ({diverged} of {len(rows)} seeds)"
    values = [100 * of(row) for row in rows]
    if any(map(math.isnan, values)):
        return "–"
    if len(values) == 1:
        return f"{values[0]:.1f} (one seed)"
    return f"{statistics.fmean(values):.1f} ± {statistics.stdev(values):.1f}"


def _grid(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = ["---"] * len(header)
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, rule, *lines)) + "\n"
