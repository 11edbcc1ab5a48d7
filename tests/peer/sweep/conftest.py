"""A small sweep: quadratics of three dimensions, a few steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from peer.sweep.cell import Row
from peer.sweep.grid import Cell, build_cells, parse_axis
from peer.sweep.sweep import Options, sweep
from relayswarm.settings import Override

SMALL = [
    "peers=4",
    "steps=20",
    "task.name=quadratics",
    "task.options={dimension = 3}",
    "optimizer.lr=0.2",
    "topology.graph=chain",
]


def small_cells(*axes: str, seeds: int = 1, overrides: tuple[str, ...] = ()) -> list[Cell]:
    given = [Override(text, "--set") for text in (*SMALL, *overrides)]
    return build_cells(None, given, [parse_axis(text) for text in axes], seeds)


class Swept:
    """A sweep that is over."""

    def __init__(self, output: Path, *axes: str, seeds: int = 1, **options: Any) -> None:
        overrides = tuple(options.pop("overrides", ()))
        cells = small_cells(*axes, seeds=seeds, overrides=overrides)
        parsed = [parse_axis(text) for text in axes]
        self.notices: list[tuple[str, str, int, int]] = []
        notice = lambda *told: self.notices.append(told)  # noqa: E731
        # How peers are stacked is chosen by time, and changes the last bit on some processors.
        options.setdefault("stacked", "off")
        self.rows: list[Row]
        self.rows, self.files = sweep(cells, parsed, Options(output, **options), notice)


@pytest.fixture
def swept() -> Callable[..., Swept]:
    return Swept


@pytest.fixture
def cells() -> Callable[..., list[Cell]]:
    return small_cells
