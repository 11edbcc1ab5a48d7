"""Figures 5 and 6: the effective spectral gap, and what relaying takes from an update."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.figures.bench import Bench, panels
from benchmarks.figures.spectrum import effective_gap
from coordinator.graphs import build_graph
from coordinator.trees import Tree, lr_factor_by_propagation

TREES = ("chain", "star", "heap-binary-tree")
GAP_SIZES = {
    "chain": (4, 6, 8, 12, 16, 24, 32),  # W has n^2 rows: more take minutes
    "star": (4, 8, 16, 32, 64, 128, 256),
    "heap-binary-tree": (4, 8, 16, 32, 64, 128),
}
FACTOR_SIZES = (2, 4, 8, 16, 32, 64)


def tree_of(graph: str, n: int) -> Tree:
    """The tree that a graph without cycles is."""
    return Tree(n, tuple((edge.u, edge.v) for edge in build_graph(graph, n).edges))


def figure_5(bench: Bench, sizes: Mapping[str, Sequence[int]] = GAP_SIZES) -> None:
    """rho = p / m of lemma 1, and what Theta(1/n) would be."""
    figure, (axis,) = panels(
        ["effective spectral gap"], "peers", r"$\rho = p / m$", xscale="log", yscale="log"
    )
    rows: list[tuple[str, int, float, int, float, float]] = []
    for graph, peers in sizes.items():
        gaps = [effective_gap(tree_of(graph, n)) for n in peers]
        both = zip(peers, gaps, strict=True)
        rows += [(graph, n, gap.p, gap.m, gap.rho, n * gap.rho) for n, gap in both]
        axis.plot(peers, [gap.rho for gap in gaps], marker=".", label=graph)
    ends = (4, 256)
    for factor in (0.6, 1.8):
        axis.plot(ends, [factor / n for n in ends], "k:", linewidth=0.8, label=f"{factor} / n")
    axis.legend(fontsize=7)
    bench.save("figure-5", ("tree", "peers", "p", "m", "rho", "peers_times_rho"), rows, figure)


def figure_6(bench: Bench, sizes: Sequence[int] = FACTOR_SIZES) -> None:
    """The factor 1 / (alpha n) by the formula and by messages of (origin, step) pairs."""
    figure, (axis,) = panels(["learning-rate factor"], "peers", r"$1 / (\alpha n)$", xscale="log")
    rows = []
    for graph in TREES:
        trees = [tree_of(graph, n) for n in sizes]
        factors = [float(tree.lr_factor()) for tree in trees]
        shown = [float(lr_factor_by_propagation(tree)) for tree in trees]
        overlapped = [float(tree.lr_factor(overlap=True)) for tree in trees]
        values = zip(sizes, factors, shown, overlapped, strict=True)
        rows += [(graph, *row) for row in values]
        axis.plot(sizes, factors, marker=".", label=graph)
    axis.legend(fontsize=7)
    header = ("tree", "peers", "factor", "by_propagation", "factor_with_overlap")
    bench.save("figure-6", header, rows, figure)
