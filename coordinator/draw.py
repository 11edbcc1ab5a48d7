"""Pictures of topologies: the graph with its trees in it, and each tree from its root down.

What belongs here: everything that needs matplotlib. It brings numpy, so this module is imported
only where a picture is made, never by a serving coordinator.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import networkx as nx
from matplotlib import rcParams
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from coordinator.graphs import Graph
from coordinator.topology import Topology
from coordinator.trees import Tree

Positions = Mapping[int, tuple[float, float]]

TREE_COLOURS = ("#0072B2", "#D55E00")  # told apart by colour-blind readers too
GRAPH_COLOUR = "#C4C4C4"
ROOT_COLOUR = "#F0C000"


def draw_topology(topology: Topology, labels: Sequence[int] | None, path: Path, title: str) -> None:
    """Draw into a PNG file: left the graph in grey with its trees bold, right each tree by layers.

    `labels` name the peers, by default 0..n-1. The root has a gold ring. Raises `OSError` if the
    file cannot be written.
    """
    names = labels if labels is not None else range(topology.n)
    scale = _scale(topology.n)
    figure = Figure(figsize=(12 * scale, 6 * scale), layout="constrained")
    figure.suptitle(title, fontsize=13 * scale, fontweight="bold")
    grid = figure.add_gridspec(len(topology.trees), 2)
    _draw_graph(figure.add_subplot(grid[:, 0]), topology, names)
    for row in range(len(topology.trees)):
        _draw_row(figure.add_subplot(grid[row, 1]), topology, row, names)
    figure.savefig(path, format="png", dpi=110)


def graph_figure(topology: Topology, labels: Sequence[int] | None) -> Figure:
    """The graph alone, as `draw_topology` has it on the left."""
    figure, axes = _square(topology)
    _draw_graph(axes, topology, labels if labels is not None else range(topology.n))
    return figure


def tree_figures(topology: Topology, labels: Sequence[int] | None) -> list[Figure]:
    """Each tree alone, as `draw_topology` has them on the right."""
    names = labels if labels is not None else range(topology.n)
    figures = []
    for row in range(len(topology.trees)):
        figure, axes = _square(topology)
        _draw_row(axes, topology, row, names)
        figures.append(figure)
    return figures


def _square(topology: Topology) -> tuple[Figure, Axes]:
    side = 5.2 * _scale(topology.n)
    figure = Figure(figsize=(side, 0.85 * side))
    margins = {"left": 0.01, "right": 0.99, "bottom": 0.01, "top": 0.92}
    return figure, figure.subplots(gridspec_kw=margins)


def _scale(n: int) -> float:
    """How much larger than for a few peers the picture is."""
    return min(2.0, max(1.0, math.sqrt(n / 24)))


def _draw_graph(axes: Axes, topology: Topology, names: Sequence[int]) -> None:
    graph, at = topology.graph, _graph_positions(topology.graph)
    _draw_edges(axes, at, [(u, v) for u, v, _ in graph.edges], GRAPH_COLOUR, 1.0)
    widths = (2.6,) if len(topology.trees) == 1 else (5.2, 2.0)  # an edge of both shows both
    for tree, colour, width in zip(topology.trees, TREE_COLOURS, widths, strict=False):
        _draw_edges(axes, at, tree.edges, colour, width)
    _write_costs(axes, at, graph)
    _draw_peers(axes, at, names, topology.roots)
    axes.set_title(f"{len(graph.edges)} links; in colour those of the tree, gold the root")


def _draw_row(axes: Axes, topology: Topology, row: int, names: Sequence[int]) -> None:
    name = "tree" if len(topology.trees) == 1 else f"tree {'AB'[row]}"
    root, tree = topology.roots[row], topology.trees[row]
    _draw_tree(axes, root, tree, names, TREE_COLOURS[row], name)


def _draw_tree(
    axes: Axes, root: int, tree: Tree, names: Sequence[int], colour: str, title: str
) -> None:
    at = _layers(tree, root)
    _draw_edges(axes, at, tree.edges, colour, 2.2)
    _draw_peers(axes, at, names, (root,))
    factor = tree.lr_factor()
    axes.set_title(f"{title}: diameter {tree.diameter}, learning-rate factor {factor}")


def _draw_edges(
    axes: Axes, at: Positions, edges: Sequence[tuple[int, int]], colour: str, width: float
) -> None:
    lines = [(at[u], at[v]) for u, v in edges]
    axes.add_collection(LineCollection(lines, colors=colour, linewidths=width, zorder=1))


def _draw_peers(axes: Axes, at: Positions, names: Sequence[int], roots: Sequence[int]) -> None:
    peers = sorted(at)
    size = min(420.0, max(130.0, 420.0 * 24 / len(peers) * _scale(len(peers)) ** 2))  # points^2
    edges = [ROOT_COLOUR if peer in roots else rcParams["axes.edgecolor"] for peer in peers]
    widths = [3.5 if peer in roots else 1.0 for peer in peers]
    x, y = [at[p][0] for p in peers], [at[p][1] for p in peers]
    fill = rcParams["axes.facecolor"]
    axes.scatter(x, y, s=size, c=fill, edgecolors=edges, linewidths=widths, zorder=3)
    for peer in peers:
        axes.text(
            *at[peer],
            str(names[peer]),
            ha="center",
            va="center",
            fontsize=size**0.5 / 2.2,
            zorder=4,
        )
    axes.margins(0.08)
    axes.set_axis_off()


def _write_costs(axes: Axes, at: Positions, graph: Graph) -> None:
    """Costs at the middle of the edges, where there are any to tell apart and room to do so."""
    if len(graph.edges) > 120 or {edge.cost for edge in graph.edges} == {1}:
        return
    for u, v, cost in graph.edges:
        middle = ((at[u][0] + at[v][0]) / 2, (at[u][1] + at[v][1]) / 2)
        box = {"facecolor": rcParams["axes.facecolor"], "edgecolor": "none", "pad": 1.0}
        axes.text(*middle, str(cost), ha="center", va="center", fontsize=8, bbox=box, zorder=2)


def _graph_positions(graph: Graph) -> Positions:
    """By spring lengths where that shows the shape, on a circle where all is symmetric anyway."""
    drawn = nx.Graph([(u, v) for u, v, _ in graph.edges])
    drawn.add_nodes_from(range(graph.n))
    dense = len(graph.edges) > 4 * graph.n or len(graph.edges) * 2 == graph.n * (graph.n - 1)
    layout = nx.circular_layout if dense or graph.n > 200 else nx.kamada_kawai_layout
    return {peer: (float(x), float(y)) for peer, (x, y) in layout(drawn).items()}


def _layers(tree: Tree, root: int) -> Positions:
    """Depth downward; leaves side by side, every other peer in the middle above its children."""
    walk = tree.walk(root)
    children: dict[int, list[int]] = {peer: [] for peer, _, _ in walk}
    for peer, before, _ in walk[1:]:
        children[before].append(peer)
    column: dict[int, float] = {}
    for leaf in _leaves_left_to_right(children, root):
        column[leaf] = float(len(column))
    for peer, _, _ in reversed(walk):
        if below := [column[child] for child in children[peer]]:
            column[peer] = (min(below) + max(below)) / 2
    return {peer: (column[peer], -float(hops)) for peer, _, hops in walk}


def _leaves_left_to_right(children: Mapping[int, Sequence[int]], root: int) -> list[int]:
    leaves, stack = [], [root]
    while stack:
        peer = stack.pop()
        stack += reversed(children[peer])
        if not children[peer]:
            leaves.append(peer)
    return leaves
