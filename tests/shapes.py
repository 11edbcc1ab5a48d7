"""Trees and graphs to try things on: any tree, and every connected graph of a few peers."""

from __future__ import annotations

import itertools

import networkx as nx
from hypothesis import strategies as st

from coordinator.trees import Tree


@st.composite
def trees(draw: st.DrawFn, least: int = 1, most: int = 8) -> Tree:
    """Any tree, by attaching each peer to an earlier one and renaming all."""
    n = draw(st.integers(least, most))
    name = draw(st.permutations(range(n)))
    return Tree(n, tuple((name[draw(st.integers(0, k - 1))], name[k]) for k in range(1, n)))


def connected_shapes(n: int) -> list[tuple[tuple[int, int], ...]]:
    """The connected graphs over n peers, one for each shape."""
    pairs = list(itertools.combinations(range(n), 2))
    shapes: list[nx.Graph] = []
    for size in range(n - 1, len(pairs) + 1):
        for chosen in itertools.combinations(pairs, size):
            graph = nx.Graph(chosen)
            new = len(graph) == n and nx.is_connected(graph)
            if new and not any(nx.is_isomorphic(graph, known) for known in shapes):
                shapes.append(graph)
    return [tuple(graph.edges) for graph in shapes]
