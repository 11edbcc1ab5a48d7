"""The picture of a sweep: each cell's final metric."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from peer.outcome import ACCURACY

Row = Mapping[str, Any]

ORDER = (f"worst_{ACCURACY}", "steps_to_target", "consensus_suboptimality", "worst_loss")
"""What is drawn: the first of these columns that any row has a number in."""


def draw(rows: Sequence[Row], axes: Sequence[str]) -> bytes | None:
    """A PNG of the first column of `ORDER` that there is; None if there is nothing to draw.

    A numeric axis with several values runs from left to right, a line for each combination of the
    others (mean over seeds, every seed a dot); else each combination is a row of dots.
    """
    metric = next((m for m in ORDER if any(row.get(m) is not None for row in rows)), None)
    if metric is None:
        return None
    known = [row for row in rows if row.get(metric) is not None]
    numeric = [name for name in axes if len({row[name] for row in rows}) > 1 and _all(rows, name)]
    figure = Figure(figsize=(7.0, 4.4), layout="constrained")
    if len(known) < len(rows):
        text = f"{len(rows) - len(known)} of {len(rows)} runs are not shown: no such number"
        figure.suptitle(text, fontsize=9)
    if numeric:
        _lines(figure, known, metric, numeric[-1], [a for a in axes if a != numeric[-1]])
    else:
        _dots(figure, known, metric, axes)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=130)
    return content.getvalue()


def _lines(figure: Figure, rows: Sequence[Row], metric: str, x: str, others: Sequence[str]) -> None:
    axes = figure.subplots()
    for number, (label, group) in enumerate(_grouped(rows, others).items()):
        points = defaultdict(list)
        for row in group:
            points[float(row[x])].append(row[metric])
        places = sorted(points)
        means = [sum(points[place]) / len(points[place]) for place in places]
        axes.plot(places, means, color=f"C{number}", label=label)
        dots = [(place, value) for place in places for value in points[place]]
        axes.plot(*zip(*dots, strict=True), ".", color=f"C{number}", alpha=0.6)
    axes.set_xlabel(x)
    axes.set_ylabel(metric.replace("_", " "))
    axes.set_yscale(_scale(rows, metric))
    if others:
        axes.legend(frameon=False)


def _dots(figure: Figure, rows: Sequence[Row], metric: str, names: Sequence[str]) -> None:
    axes = figure.subplots()
    groups = _grouped(rows, names)
    for place, group in enumerate(groups.values()):
        values = [row[metric] for row in group]
        axes.plot(values, [place] * len(values), ".", color="C0", alpha=0.6)
        axes.plot([sum(values) / len(values)], [place], "|", color="C0", markersize=18)
    axes.set_yticks(range(len(groups)), list(groups))
    axes.invert_yaxis()
    axes.set_xlabel(metric.replace("_", " "))
    axes.set_xscale(_scale(rows, metric))


def _grouped(rows: Sequence[Row], names: Sequence[str]) -> dict[str, list[Row]]:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        label = ", ".join(str(row[name]) for name in names) or "all"
        groups.setdefault(label, []).append(row)
    return groups


def _scale(rows: Sequence[Row], metric: str) -> str:
    """Losses span powers of ten; accuracies and steps do not."""
    is_loss = metric.endswith(("loss", "suboptimality"))
    return "log" if is_loss and all(row[metric] > 0 for row in rows) else "linear"


def _all(rows: Sequence[Row], name: str) -> bool:
    """Whether all values on this axis are numbers."""
    try:
        return bool([float(row[name]) for row in rows])
    except ValueError:
        return False
