"""Pictures of a run: how training went, and the tree that it went along.

What belongs here: everything of the report that needs matplotlib, so that nothing else imports it;
what only the page shows is in `peer.page.pictures`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from coordinator.double_binary_trees import mirror
from coordinator.draw import draw_topology
from coordinator.graphs import Edge, Graph
from coordinator.stopping import higher_is_better
from coordinator.topology import Topology, TreeKind
from coordinator.trees import Tree
from peer.baseline import Baseline
from peer.outcome import PeerOutcome, RunOutcome, headline

Floats = NDArray[np.float64]

SWARM_COLOUR = "#0072B2"  # this pair and grey are told apart by colour-blind readers too
BASELINE_COLOUR = "#D55E00"
PEER_COLOUR = "#8A8A8A"
INK, PAPER, GRID = "#303030", "#FFFFFF", "#E4E4E4"
LOOK: dict[Any, Any] = {
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor"), INK),
    **dict.fromkeys(("xtick.color", "ytick.color"), INK),
    "grid.color": GRID,
}
"""Settings of matplotlib for all pictures of a run."""

MANY = 32  # peers
SMOOTHING = 40
"""A loss curve is averaged over 1/40 of its length: single batches say little."""


def draw_curves(outcome: RunOutcome, baseline: Baseline | None, path: Path, title: str) -> None:
    """Draw into a PNG file the training loss and, if there is any, the evaluation over the steps.

    A thin line is a peer, the band reaches from the best peer to the worst, the bold line is their
    mean, and the dashed one the baseline. Raises `OSError` if the file cannot be written.
    """
    metrics = evaluated(outcome.peers)[-1:]
    columns = 1 + len(metrics)
    with matplotlib.rc_context(LOOK):
        figure = Figure(figsize=(6.0 * columns, 4.2), layout="constrained")
        figure.suptitle(title, fontsize=13, fontweight="bold")
        axes = figure.subplots(1, columns, squeeze=False)[0]
        draw_losses(axes[0], outcome.peers, baseline)
        for metric in metrics:
            draw_evaluations(axes[1], outcome.peers, metric, baseline)
        figure.savefig(path, format="png", dpi=130)


def draw_tree(topology: Mapping[str, Any], path: Path, title: str) -> None:
    """Draw a `topology` event into a PNG file. Raises `OSError` if it cannot be written."""
    with matplotlib.rc_context(LOOK):
        draw_topology(rebuild(topology), labels(topology), path, title)


def rebuild(event: Mapping[str, Any]) -> Topology:
    """The topology that an event tells of, its members numbered as they are listed."""
    members = list(event["members"])
    number = {peer: k for k, peer in enumerate(members)}
    n = len(members)
    trees = tuple(Tree(n, tuple((number[u], number[v]) for u, v in t)) for t in event["trees"])
    edges = {(min(u, v), max(u, v)) for tree in trees for u, v in tree.edges}
    for u, v in event.get("graph_edges", ()):
        edges.add((min(number[u], number[v]), max(number[u], number[v])))
    kind = TreeKind.SPANNING_TREE if len(trees) == 1 else TreeKind.DOUBLE_BINARY_TREES
    roots = (number[event["root"]], *(mirror(0, n) for _ in trees[1:]))
    return Topology(Graph(n, tuple(Edge(*pair) for pair in edges)), kind, roots, trees)


def labels(event: Mapping[str, Any]) -> list[int] | None:
    """The numbers in the members' ids, if all have one and no two the same; else None: their
    places."""
    members = event["members"]
    found = [re.search(r"(\d+)$", peer) for peer in members]
    numbers = [int(match[1]) for match in found if match]
    return numbers if len(set(numbers)) == len(members) else None


def evaluated(peers: Sequence[PeerOutcome]) -> tuple[str, ...]:
    """The metrics whose development is worth a picture of its own."""
    if not any(len(peer.evaluations) > 1 for peer in peers):
        return ()
    return headline(next((p.metrics for p in peers if p.metrics), {}))


def draw_losses(axes: Axes, peers: Sequence[PeerOutcome], baseline: Baseline | None) -> None:
    """Training losses over the steps."""
    curves = [_smooth(_points(peer.losses)) for peer in peers]
    _draw_swarm(axes, [curve for curve in curves if len(curve)])
    if baseline is not None and len(curve := _smooth(_points(baseline.losses))):
        label = f"centralized, batch {baseline.batch_size}"
        axes.plot(curve[:, 0], curve[:, 1], "--", color=BASELINE_COLOUR, lw=1.6, label=label)
    positive = [curve for curve in curves if len(curve) and curve[:, 1].min() > 0]
    if positive and len(positive) == len(curves):
        axes.set_yscale("log")
    finish(axes, "training loss (each peer on its own data, running mean)", "loss")


def draw_evaluations(
    axes: Axes, peers: Sequence[PeerOutcome], metric: str, baseline: Baseline | None
) -> None:
    """Evaluations of one metric over the steps, the final one last."""
    measured = [{**dict(peer.evaluations), peer.steps: peer.metrics} for peer in peers]
    curves = [_points([(step, m.get(metric)) for step, m in one.items()]) for one in measured]
    _draw_swarm(axes, [curve for curve in curves if len(curve)])
    level = baseline.metrics.get(metric) if baseline else None
    if level is not None:
        axes.axhline(level, ls="--", color=BASELINE_COLOUR, lw=1.6, label="centralized, at the end")
    if higher_is_better(metric):
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    else:
        axes.set_yscale("log")
    finish(axes, f"test {metric} (each peer on the common test set)", metric)


def _draw_swarm(axes: Axes, curves: Sequence[Floats]) -> None:
    """Peers as thin lines; where all have points, their mean and the band between extremes."""
    for curve in curves:
        axes.plot(
            curve[:, 0],
            curve[:, 1],
            color=PEER_COLOUR,
            lw=0.7,
            alpha=0.55,
            rasterized=len(curves) > MANY,  # in a vector picture; thousands of points else
        )
    common = _common_steps(curves)
    if len(common) == 0:
        return
    table = np.stack([np.interp(common, curve[:, 0], curve[:, 1]) for curve in curves])
    low, high = table.min(axis=0), table.max(axis=0)
    axes.fill_between(common, low, high, color=SWARM_COLOUR, alpha=0.16, lw=0)
    label = f"mean of {len(curves)} peers (band: best to worst)"
    marker = "o" if len(common) <= 20 else ""
    axes.plot(
        common, table.mean(axis=0), color=SWARM_COLOUR, lw=2.2, marker=marker, ms=4, label=label
    )


def _common_steps(curves: Sequence[Floats]) -> Floats:
    """Steps at which some peer has a point, as far as all peers have any."""
    if not curves:
        return np.empty(0)
    first = max(curve[0, 0] for curve in curves)
    last = min(curve[-1, 0] for curve in curves)
    steps = np.unique(np.concatenate([curve[:, 0] for curve in curves]))
    return np.asarray(steps[(steps >= first) & (steps <= last)])


def _points(pairs: Sequence[tuple[int, float | None]]) -> Floats:
    """As an array of shape (k, 2), in order of steps, without what was not finite."""
    kept = sorted((step, value) for step, value in pairs if value is not None)
    return np.array(kept, dtype=np.float64).reshape(-1, 2)


def _smooth(points: Floats) -> Floats:
    """A centred moving average. It begins with the first value, which is no single batch's luck,
    and narrows to its backward half at the end."""
    reach = len(points) // (2 * SMOOTHING)
    total = np.concatenate([[0.0], np.cumsum(points[:, 1])])
    at = np.arange(len(points))
    first = at - np.minimum(reach, at)
    last = at + np.minimum(np.minimum(reach, at), len(points) - 1 - at)
    means = (total[last + 1] - total[first]) / (last - first + 1)
    return np.column_stack([points[:, 0], means])


def finish(axes: Axes, title: str, ylabel: str, xlabel: str = "step") -> None:
    """What all charts have in common."""
    axes.set_title(title, fontsize=10.5)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(lw=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=False, fontsize=9)
