"""Draws the pictures of docs/concepts.md: the swarm, the relay, the counter.

    python tools/generate_pictures.py [FOLDER]    into docs/images, or elsewhere

The pictures of graphs and trees there are made by `relayswarm topology --png`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
BLUE, ORANGE, GREY, INK, GOLD = "#0072B2", "#D55E00", "#9A9A9A", "#303030", "#F0C000"
CHAIN = "abcd"
GAP = 3.0  # between two peers of the chain


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """One unit of the axes is half an inch."""
    figure = Figure(figsize=(width / 2, height / 2))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, width)
    axes.set_ylim(0, height)
    axes.set_axis_off()
    return figure, axes


def peer(axes: Axes, x: float, y: float, name: str, edge: str = INK) -> None:
    axes.scatter([x], [y], s=620, c="white", edgecolors=edge, linewidths=1.8, zorder=3)
    axes.text(x, y, name, ha="center", va="center", fontsize=12, color=INK, zorder=4)


def arrow(axes: Axes, x: float, y: float, text: str, colour: str = BLUE) -> None:
    """From the peer at x to the next of the chain, with what travels above it."""
    style = {"arrowstyle": "-|>", "color": colour, "lw": 2.0, "shrinkA": 15, "shrinkB": 15}
    axes.annotate("", (x + GAP, y), (x, y), arrowprops=style, zorder=2)
    axes.text(x + GAP / 2, y + 0.22, text, ha="center", va="bottom", fontsize=10, color=colour)


def relay() -> Figure:
    """What travels to the right on a chain in the first three steps."""
    figure, axes = canvas(18.6, 7.4)
    sums = [("a0", "b0", "c0"), ("a1", "b1 + a0", "c1 + b0"), ("a2", "b2 + a1", "c2 + b1 + a0")]
    averages = ("d0 + c0", "d1 + c1 + b0", "d2 + c2 + b1 + a0")
    for step, (sent, averaged) in enumerate(zip(sums, averages, strict=True)):
        y = 5.9 - 2.3 * step
        axes.text(0.3, y, f"step {step}", va="center", fontsize=11, color=GREY)
        for k, name in enumerate(CHAIN):
            peer(axes, 3 + GAP * k, y, name)
        for k, text in enumerate(sent):
            arrow(axes, 3 + GAP * k, y, text)
        count = averaged.count("+") + 1
        text = f"d averages\n{averaged}\n{count} of 4 models"
        axes.text(13.0, y, text, va="center", fontsize=10.5, color=INK, linespacing=1.4)
    return figure


def counter() -> Figure:
    """What follows from the loss of a message from b to c."""
    figure, axes = canvas(18.6, 6.9)
    rows = (("a1", 1), ("b1 + a0", 2), ("c1 + b0", 2)), (("a2", 1), ("b2 + a1", 2), ("c2", 1))
    for row, sent in enumerate(rows):
        y = 5.3 - 2.4 * row
        axes.text(0.3, y, f"step {row + 1}", va="center", fontsize=11, color=GREY)
        for k, name in enumerate(CHAIN):
            peer(axes, 3 + GAP * k, y, name)
        for k, (text, count) in enumerate(sent):
            is_lost = (row, k) == (0, 1)
            arrow(axes, 3 + GAP * k, y, f"{text}\ncount {count}", GREY if is_lost else BLUE)
    middle = 3 + 1.5 * GAP
    axes.scatter([middle], [5.3], marker="X", s=190, c=ORANGE, zorder=5)
    axes.text(middle, 4.9, "lost", ha="center", va="top", fontsize=10.5, color=ORANGE)
    text = "d has d2 + c2:\n2 of 4 models"
    axes.text(13.0, 2.9, text, va="center", fontsize=10.5, color=INK, linespacing=1.4)
    ways = (
        ("previous:", "(d2 + c2 + 2 d') / 4, with d' the model of d before the step"),
        ("counts:", "(d2 + c2) / 2"),
    )
    for row, (name, formula) in enumerate(ways):
        y = 1.3 - 0.62 * row
        axes.text(2.5, y, name, va="center", fontsize=10.5, color=INK)
        axes.text(4.4, y, formula, va="center", fontsize=10.5, color=INK)
    return figure


def swarm() -> Figure:
    """Who talks to whom, and what stays where it is."""
    figure, axes = canvas(15.0, 9.6)
    places = {"0": (3.2, 4.6), "1": (7.5, 5.6), "2": (11.8, 4.6), "3": (5.2, 2.3), "4": (9.8, 2.3)}
    tree = [("0", "1"), ("1", "2"), ("0", "3"), ("2", "4")]
    others = [("1", "3"), ("1", "4"), ("3", "4")]
    for pairs, colour, width in ((others, "#C4C4C4", 1.2), (tree, BLUE, 3.0)):
        for u, v in pairs:
            (x, y), (x2, y2) = places[u], places[v]
            axes.plot([x, x2], [y, y2], color=colour, lw=width, zorder=1)
    box = {"boxstyle": "round,pad=0.6", "facecolor": "white", "edgecolor": ORANGE, "lw": 1.8}
    axes.text(7.5, 8.6, "coordinator", ha="center", va="center", fontsize=12, color=INK, bbox=box)
    for x, y in places.values():
        axes.plot([7.5, x], [8.05, y], ls=":", color=ORANGE, lw=1.2, zorder=0)
    for name, (x, y) in places.items():
        peer(axes, x, y, name, GOLD if name == "0" else INK)
        paper = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
        words = axes.text(x, y - 0.65, "own data", ha="center", va="top", zorder=2)
        words.set(fontsize=9, color=GREY, bbox=paper)
    legend = (
        ("-", BLUE, "the tree: sums of models, both ways"),
        ("-", "#C4C4C4", "the graph: could talk to each other"),
        (":", ORANGE, "who is there, and the tree: no models"),
    )
    for row, (style, colour, meaning) in enumerate(legend):
        x, y = (0.5, 0.95 - 0.5 * row) if row < 2 else (8.1, 0.95)
        axes.plot([x, x + 0.8], [y, y], ls=style, color=colour, lw=2.4)
        axes.text(x + 1.1, y, meaning, va="center", fontsize=9.5, color=INK)
    return figure


PICTURES: Mapping[str, Callable[[], Figure]] = {"relay": relay, "counter": counter, "swarm": swarm}


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else IMAGES
    for name, draw in PICTURES.items():
        draw().savefig(folder / f"{name}.png", dpi=130, metadata={"Software": None})
        print(folder / f"{name}.png")


if __name__ == "__main__":
    main()
