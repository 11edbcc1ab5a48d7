"""The pictures of a report's page: vector graphics, each in a light and in a dark look.

What belongs here: what only the page shows (lost messages, the time line), and how a figure becomes
text to stand in a page. Curves are `peer.plots`, graphs and trees `coordinator.draw`.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from coordinator.draw import graph_figure, tree_figures
from peer.algorithms.core import peer_order
from peer.baseline import Baseline
from peer.outcome import Happening, PeerOutcome, RunOutcome
from peer.plots import (
    BASELINE_COLOUR,
    GRID,
    INK,
    LOOK,
    PAPER,
    PEER_COLOUR,
    SWARM_COLOUR,
    draw_evaluations,
    draw_losses,
    evaluated,
    finish,
    labels,
    rebuild,
)

DARK = {
    INK: "#D7DCE2",
    PAPER: "#161B22",
    GRID: "#30363D",
    SWARM_COLOUR: "#56B4E9",
    BASELINE_COLOUR: "#E69F00",
}
"""What stands for the colours of a picture in the dark; the others are seen on both."""

SVG: dict[Any, Any] = {**LOOK, "svg.hashsalt": "relayswarm", "svg.fonttype": "path"}
WIDTH = 5.2  # inches: letters of 10 points can still be read where that is a phone's width
BINS = 60  # of lost messages over a run


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture as two `data:` addresses, and what it shows in words."""

    light: str
    dark: str
    alt: str


def picture(make: Callable[[], Figure], alt: str) -> Picture:
    """Draw it; the same figure gives the same bytes."""
    content = io.StringIO()
    with matplotlib.rc_context(SVG):
        make().savefig(content, format="svg", metadata={"Date": None, "Creator": None})
    light = content.getvalue()
    colours = re.compile("|".join(DARK), re.IGNORECASE)
    dark = colours.sub(lambda found: DARK[found[0].upper()], light)
    return Picture(_address(light), _address(dark), alt)


def _address(svg: str) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"


def _chart(height: float = 3.6) -> tuple[Figure, Axes]:
    """Its margins are fixed: finding the best takes as long as drawing. "97.75%" has room."""
    figure = Figure(figsize=(WIDTH, height))
    margins = {"left": 0.17, "right": 0.97, "bottom": 0.48 / height, "top": 1 - 0.3 / height}
    return figure, figure.subplots(gridspec_kw=margins)


def _rows(count: int, more: float = 0.0) -> tuple[Figure, Axes]:
    """A chart with a row for each peer, whose names take as much room as they need."""
    height = min(16.0, 1.2 + 0.26 * count) + more
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots()


# --- curves, graph, trees ---------------------------------------------------------------------


def curves(outcome: RunOutcome, baseline: Baseline | None) -> Iterator[Picture]:
    """Each metric that was measured more than once, then the training loss."""
    for metric in evaluated(outcome.peers):
        yield picture(
            lambda metric=metric: _evaluations(outcome.peers, metric, baseline),  # type: ignore[misc]
            f"{metric} on the test set over the steps, with the band of all peers",
        )
    if any(peer.losses for peer in outcome.peers):
        alt = "training loss over the steps, with the band of all peers"
        yield picture(lambda: _losses(outcome.peers, baseline), alt)


def _evaluations(peers: Sequence[PeerOutcome], metric: str, baseline: Baseline | None) -> Figure:
    figure, axes = _chart()
    draw_evaluations(axes, peers, metric, baseline)
    return figure


def _losses(peers: Sequence[PeerOutcome], baseline: Baseline | None) -> Figure:
    figure, axes = _chart()
    draw_losses(axes, peers, baseline)
    return figure


def topology(outcome: RunOutcome) -> Iterator[Picture]:
    """Graph and trees of the last epoch."""
    if not outcome.topologies:
        return
    event = outcome.topologies[-1]
    found, names = rebuild(event), labels(event)
    yield picture(lambda: graph_figure(found, names), "communication graph, with the trees in it")
    for row in range(len(found.trees)):
        yield picture(lambda row=row: tree_figures(found, names)[row], "tree, from its root down")  # type: ignore[misc]


# --- lost messages ----------------------------------------------------------------------------


def losses_of_messages(peers: Sequence[PeerOutcome]) -> Iterator[Picture]:
    """When and by whom messages were missed; nothing if none was."""
    if not any(peer.messages_missed for peer in peers):
        return
    if any(count for peer in peers for _, count in peer.missed):
        yield picture(lambda: _missed_over_steps(peers), "messages missed over the steps")
    yield picture(lambda: _missed_by_peer(peers), "share of messages that each peer missed")


def _missed_over_steps(peers: Sequence[PeerOutcome]) -> Figure:
    figure, axes = _chart(2.8)
    points = np.array([point for peer in peers for point in peer.missed], dtype=np.float64)
    edges = np.linspace(0, points[:, 0].max() + 1, min(BINS, int(points[:, 0].max()) + 1) + 1)
    total = np.histogram(points[:, 0], edges, weights=points[:, 1])[0]
    count = np.histogram(points[:, 0], edges)[0]
    means = total / np.maximum(count, 1)
    axes.stairs(means, edges, fill=True, color=BASELINE_COLOUR, alpha=0.35)
    axes.stairs(means, edges, color=BASELINE_COLOUR, lw=1.4)
    axes.set_ylim(bottom=0)
    finish(axes, "messages missed in a step (mean of the peers)", "messages")
    return figure


def _missed_by_peer(peers: Sequence[PeerOutcome]) -> Figure:
    figure, axes = _rows(len(peers))
    shares = [peer.messages_missed / max(peer.messages_expected, 1) for peer in peers]
    axes.barh([peer.id for peer in peers], shares, color=BASELINE_COLOUR, alpha=0.75, height=0.6)
    axes.invert_yaxis()
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    finish(axes, "share of the expected messages that was missed", "", "missed")
    axes.grid(visible=False, axis="y")
    return figure


# --- the time line ----------------------------------------------------------------------------

MARKS = {  # event: (marker, colour, label)
    "member_joined": (">", SWARM_COLOUR, "joined"),
    "peer_exited": ("X", BASELINE_COLOUR, "ended before its time"),
    "member_lost": ("v", BASELINE_COLOUR, "given up by the swarm"),
    "peer_finished": ("o", SWARM_COLOUR, "finished"),
}


def time_line(outcome: RunOutcome, clock: str) -> Iterator[Picture]:
    """Who was a member when, and what befell whom."""
    if outcome.happenings:
        yield picture(lambda: _lanes(outcome, clock), "time line of members, faults and epochs")


def _lanes(outcome: RunOutcome, clock: str) -> Figure:
    told = outcome.happenings
    epochs = [one.seconds for one in told if one.event == "topology"]
    members = [set(topology["members"]) for topology in outcome.topologies]
    names = sorted(set().union(*members, {h.peer for h in told if h.peer}), key=peer_order)
    lanes = {peer: row for row, peer in enumerate(names)}
    figure, axes = _rows(len(lanes), more=0.6)
    end = max(one.seconds for one in told)
    over = {one.peer: one.seconds for one in told if one.event == "peer_finished"}
    for start, stop, present in zip(epochs, [*epochs[1:], end], members, strict=False):
        rows = [lanes[peer] for peer in present]
        stops = [min(stop, over.get(peer, stop)) for peer in present]
        axes.hlines(rows, start, stops, color=SWARM_COLOUR, alpha=0.35, lw=6)
    for number, start in enumerate(epochs):
        label = "epoch of topology" if number == 0 else None
        axes.axvline(start, color=PEER_COLOUR, ls=":", lw=1.2, label=label, zorder=1)
    for event, (marker, colour, label) in MARKS.items():
        _mark(axes, [one for one in told if one.event == event], lanes, marker, colour, label)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    finish(axes, "members and what befell them", "", clock)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.grid(visible=False, axis="y")
    if legend := axes.get_legend():
        legend.remove()
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8.5)
    return figure


def _mark(
    axes: Axes,
    happened: Sequence[Happening],
    lanes: dict[str, int],
    marker: str,
    colour: str,
    label: str,
) -> None:
    if happened:
        at = [one.seconds for one in happened]
        rows = [lanes[one.peer] for one in happened]
        axes.scatter(at, rows, marker=marker, s=42, color=colour, label=label, zorder=3)
