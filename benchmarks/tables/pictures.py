"""The pictures of docs/results.md: each by its file's name, from the rows and the curves."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.figures.bench import panels
from benchmarks.tables.catalogue import TABLES, Line
from benchmarks.tables.cells import TRAIN_SAMPLES, Cell
from benchmarks.tables.store import Store
from benchmarks.tables.work import Point, Row

Rows = Mapping[str, Sequence[Row]]

PANELS = ("relaysgd-1-long", "relaysgd-5", "swarmsgd-2")
LEGEND = {"worst": "worst peer", "mean": "mean of peers", "consensus": "mean model"}

MARKERS = {"worst": "v", "mean": "o", "consensus": "^"}
LOWEST, HIGHEST = 60, 91  # percent: the first steps of all are alike


def all_of(store: Store, rows: Rows) -> dict[str, Figure]:
    """All pictures."""
    return {
        "accuracy.png": _accuracy(rows),
        "scaling.png": _scaling(store, rows),
        "quantized.png": _quantized(store),
    }


def _accuracy(rows: Rows) -> Figure:
    """For each method the worst peer, the mean of the peers and the mean model at the end; those
    that diverge have no place on the axis."""
    figure = Figure(figsize=(5 * len(PANELS), 4), layout="constrained")
    for axis, name in zip(figure.subplots(1, len(PANELS)), PANELS, strict=True):
        lines = TABLES[name].lines
        found = [
            (_name(line, column, alone=len(line.cells) == 1), rows[cell.key])
            for line in lines
            for column, cell in line.cells.items()
            if cell.key in rows
        ]
        places = range(len(found))
        for measure, values in _ends([done for _, done in found]).items():
            axis.plot(values, places, MARKERS[measure], label=LEGEND[measure], alpha=0.7)
        axis.set_yticks(places, [label for label, _ in found], fontsize=7)
        axis.set_title(TABLES[name].title.replace(": ", ":\n", 1), fontsize=9)
        axis.set_xlim(LOWEST, HIGHEST)
        axis.set_xlabel("accuracy, %")
        axis.invert_yaxis()
        axis.grid(alpha=0.3)
    figure.axes[0].legend(fontsize=7)
    return figure


def _name(line: Line, column: str, *, alone: bool) -> str:
    label = f"{line.label}, {line.topology}"
    return label if alone else f"{label}, {column}"


def _ends(found: Sequence[Sequence[Row]]) -> dict[str, list[float]]:
    return {
        measure: [100 * statistics.fmean(getattr(row, measure) for row in done) for done in found]
        for measure in LEGEND
    }


def _scaling(store: Store, rows: Rows) -> Figure:
    """Mean of the peers while they train, and what they come to."""
    sequential, swarm = TABLES["swarmsgd-scaling"].lines
    titles = ["SwarmSGD, H = 2, on the way", "at the end"]
    figure, (left, right) = panels(titles, "epochs of each model", "accuracy, %")
    done = {label: cell for label, cell in swarm.cells.items() if cell.key in rows}
    for label, cell in done.items():
        _curve(left, store, cell, _epochs, label)
    left.set_ylim(LOWEST, HIGHEST)
    left.legend(fontsize=7, loc="lower right")
    peers = [cell.peers for cell in done.values()]
    for measure, values in _ends([rows[cell.key] for cell in done.values()]).items():
        right.plot(peers, values, MARKERS[measure], label=LEGEND[measure], alpha=0.7)
    base = [
        100 * row.mean for cell in set(sequential.cells.values()) for row in rows.get(cell.key, ())
    ]
    if base:
        right.axhline(statistics.fmean(base), color="gray", linestyle=":", label=sequential.label)
    right.set_xscale("log", base=2)
    right.set_xticks(peers, list(map(str, peers)))
    right.set_xlabel("peers")
    right.legend(fontsize=7)
    return figure


def _quantized(store: Store) -> Figure:
    """Exact and rounded averages, against steps and against what was sent."""
    titles = ["SwarmSGD, H = 2, multiplier 1", "the same against what is sent"]
    figure, (left, right) = panels(titles, "epochs of each model", "accuracy, %")
    for line in TABLES["swarmsgd-quantized"].lines:
        for cell in line.cells.values():
            _curve(left, store, cell, _epochs, line.label)
            _curve(right, store, cell, _megabytes, line.label)
    right.set_xlabel("MB sent by a peer")
    left.set_ylim(LOWEST, HIGHEST)
    left.legend(fontsize=7, loc="lower right")
    return figure


def _curve(
    axis: Axes, store: Store, cell: Cell, at: Callable[[Cell, Point], float], label: str
) -> None:
    """Mean over the seeds, and the band between them."""
    runs: dict[int, list[Point]] = {}
    for point in store.points(cell):
        runs.setdefault(point.seed, []).append(point)
    measured = list(zip(*runs.values(), strict=True))
    x = [statistics.fmean(at(cell, point) for point in points) for points in measured]
    y = [[100 * point.mean for point in points] for points in measured]
    (drawn,) = axis.plot(x, list(map(statistics.fmean, y)), ".-", label=label)
    axis.fill_between(x, list(map(min, y)), list(map(max, y)), color=drawn.get_color(), alpha=0.2)


def _epochs(cell: Cell, point: Point) -> float:
    """Passes over all data that a model has made."""
    return point.steps * cell.local_steps * cell.batch / TRAIN_SAMPLES


def _megabytes(cell: Cell, point: Point) -> float:
    return point.bytes_sent / cell.peers / 1e6
