"""The files of a sweep.

    cells/KEY.json      a finished cell; what is here is not run again
    tuned/KEY.json      a combination's tuned rate, with all that was tried
    sweep.json          what was swept, with versions and hardware
    results.csv         one row a cell; results.parquet the same, where pyarrow is installed
    results.png         the cells' final metric

Each file appears whole or not at all, so a sweep may be cut off at any moment.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from peer.sweep.cell import Row
from relayswarm.errors import ConfigError

CELLS, TUNED, SWEEP = "cells", "tuned", "sweep.json"
CSV, PARQUET, PICTURE = "results.csv", "results.parquet", "results.png"


class Store:
    """The folder of a sweep."""

    def __init__(self, directory: Path) -> None:
        """Make it. Raises ConfigError if it cannot be written."""
        self.directory = directory
        try:
            for part in (CELLS, TUNED):
                (directory / part).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            problem = f"cannot be written ({error.strerror or error})"
            remedy = "choose a folder that you may write to"
            raise ConfigError("--output", str(directory), problem, remedy) from error

    def find(self, kind: str, key: str) -> dict[str, Any] | None:
        """What was stored of a cell or a tuning, if it is there and sound."""
        try:
            content = json.loads((self.directory / kind / f"{key}.json").read_text("utf-8"))
        except (OSError, ValueError):
            return None
        return content if isinstance(content, dict) else None

    def keep(self, kind: str, key: str, content: Mapping[str, Any]) -> None:
        """Store a finished cell or tuning."""
        self.write(f"{kind}/{key}.json", as_json(content))

    def write(self, name: str, content: bytes) -> None:
        """Write a file so that it is there whole or not at all."""
        path = self.directory / name
        part = path.with_name(f".{path.name}.part")
        part.write_bytes(content)
        os.replace(part, path)

    def tabulate(self, rows: Sequence[Row]) -> list[str]:
        """Write the table in all formats there are; returns the files' names."""
        self.write(CSV, as_csv(rows))
        if not has_pyarrow():
            return [CSV]
        self.write(PARQUET, as_parquet(rows))
        return [CSV, PARQUET]


def as_json(content: Any) -> bytes:
    """JSON for people and programs; NaN is not in it."""
    return (json.dumps(content, indent=2, allow_nan=False) + "\n").encode()


def columns(rows: Sequence[Row]) -> list[str]:
    """All columns of all rows, in the order in which they first come."""
    return list(dict.fromkeys(name for row in rows for name in row))


def as_csv(rows: Sequence[Row]) -> bytes:
    """A header and a line for each row; empty where there is no value."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns(rows), restval="")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def has_pyarrow() -> bool:
    """Whether Parquet can be written."""
    return find_spec("pyarrow") is not None


def as_parquet(rows: Sequence[Row]) -> bytes:
    """The same table with types; needs pyarrow."""
    import pyarrow as pa
    from pyarrow import parquet

    table = pa.table({name: [row.get(name) for row in rows] for name in columns(rows)})
    sink = pa.BufferOutputStream()
    parquet.write_table(table, sink)
    content: bytes = sink.getvalue().to_pybytes()
    return content
