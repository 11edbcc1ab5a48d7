"""What is kept: a row for each run that is done, what was measured on the way, and the tuned rates
with all that was tried."""

from __future__ import annotations

import csv
import fcntl
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple
from pathlib import Path
from typing import Any

from benchmarks.tables.cells import Cell
from benchmarks.tables.work import COLUMNS, POINT_COLUMNS, Point, Row

ROWS, CURVES, RATES, LOCKS = "rows.csv", "curves.csv", "rates.json", ".locks"
DIGITS = 6


class Store:
    """The folder of results. Several processes may use one at a time: each reads what the others
    wrote."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / LOCKS).mkdir(parents=True, exist_ok=True)

    @contextmanager
    def claim(self, name: str, *, wait: bool = False) -> Iterator[bool]:
        """Whether this process is the one to do what has that name; no other is until it leaves,
        or dies."""
        with (self.folder / LOCKS / name.replace("/", "_")).open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
            else:
                yield True

    def rows(self) -> list[Row]:
        """All runs done so far, but for those at a rate that was halved since."""
        rows = [_row(line) for line in self._lines(ROWS)]
        halved = {key: rate["rate"] for key, rate in self._rates().items() if "halved" in rate}
        return [row for row in rows if row.rate <= halved.get(_without_losses(row.cell), math.inf)]

    def has(self, cell: Cell, seed: int) -> bool:
        """Whether that run is done."""
        return any((row.cell, row.seed) == (cell.key, seed) for row in self.rows())

    def points(self, cell: Cell) -> list[Point]:
        """What was measured on the way in the finished runs of that cell, each once, in order."""
        runs = {(row.cell, row.seed, row.rate) for row in self.rows() if row.cell == cell.key}
        points = map(_point, self._lines(CURVES))
        found = {p for p in points if (p.cell, p.seed, p.rate) in runs}
        return sorted(found, key=lambda p: (p.seed, p.part))

    def add(self, row: Row, points: Sequence[Point] = ()) -> None:
        """Keep a run. Its row, written last, says that it is done."""
        if points:
            self._append(CURVES, POINT_COLUMNS, map(astuple, points))
        self._append(ROWS, COLUMNS, [astuple(row)])

    def _append(self, name: str, columns: Sequence[str], lines: Iterable[Sequence[Any]]) -> None:
        path = self.folder / name
        with self.claim(name, wait=True), path.open("a", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            if file.tell() == 0:
                writer.writerow(columns)
            writer.writerows([_plain(value) for value in line] for line in lines)

    def _lines(self, name: str) -> Iterator[dict[str, str]]:
        path = self.folder / name
        if path.exists():
            with path.open(newline="") as file:
                yield from csv.DictReader(file)

    def rate(self, cell: Cell) -> float | None:
        """The rate of a cell, if there is one: the tuned one, or what is left of it."""
        rates = self._rates()
        found = rates.get(cell.lossless().key) or rates.get(cell.tuned_as().key)
        return None if found is None else float(found["rate"])

    def halve(self, cell: Cell, rate: float, seed: int) -> None:
        """A seed of this cell diverged at that rate (appendix C.1, step 5)."""
        if self.rate(cell) == rate:
            known = self._rates().get(cell.key, {})
            why = [*known.get("halved", ()), f"seed {seed} diverged at {rate:g}"]
            self._keep(cell, {**known, "rate": rate / 2, "halved": why})

    def trials(self, cell: Cell) -> list[tuple[float, float | None]]:
        """Rates tried for it, and their accuracies on the validation samples."""
        found = self._rates().get(cell.tuned_as().key, {})
        return [(rate, score) for rate, score in found.get("trials", [])]

    def halvings(self, cell: Cell) -> int:
        """How often the tuned rate was halved."""
        return len(self._rates().get(cell.tuned_as().key, {}).get("halved", ()))

    def add_rate(self, cell: Cell, tuned: Mapping[str, Any]) -> None:
        """Keep a tuned rate."""
        self._keep(cell.tuned_as(), tuned)

    def _keep(self, cell: Cell, rate: Mapping[str, Any]) -> None:
        """The file is there whole or not at all."""
        with self.claim(RATES, wait=True):
            cells = sorted({**self._rates(), cell.key: dict(rate)}.items())
            lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in cells)
            part = self.folder / f"{RATES}.part"
            part.write_text(f'{{\n "how": {json.dumps(HOW)},\n "cells": {{\n{lines}\n }}\n}}\n')
            os.replace(part, self.folder / RATES)

    def _rates(self) -> dict[str, dict[str, Any]]:
        path = self.folder / RATES
        return json.loads(path.read_text())["cells"] if path.exists() else {}


HOW = (
    "powers of two around a start, until the best rate lies between two that are no better; trials "
    "are (rate, mean over peers of the accuracy on 2,000 training samples held back; null: "
    "diverged), with seed 0; halved: why that rate was halved afterwards"
)


def _without_losses(key: str) -> str:
    return "/".join(part for part in key.split("/") if not part.startswith("drop-"))


def _plain(value: Any) -> Any:
    return f"{value:.{DIGITS}g}" if isinstance(value, float) else value


KINDS = {"cell": str, "seed": int, "steps": int, "bytes_sent": int}


def _row(line: Mapping[str, str]) -> Row:
    values = _values(line, [name for name in COLUMNS if name != "converged"])
    return Row(**values, converged=line["converged"] == "True")


def _point(line: Mapping[str, str]) -> Point:
    return Point(**_values(line, POINT_COLUMNS))


def _values(line: Mapping[str, str], names: Sequence[str]) -> dict[str, Any]:
    return {name: KINDS.get(name, float)(line[name]) for name in names}
