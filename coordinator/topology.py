"""From a communication graph to the trees that peers relay along.

What belongs here: the choice of trees and the value `Topology` that the coordinator publishes and
the command line shows. Peers are 0..n-1 as in `graphs`; labels are put on at the very end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from typing import Any

from coordinator.double_binary_trees import in_order_tree, mirror, mirrored_tree
from coordinator.graphs import Graph, GraphError
from coordinator.spanning_tree import spanning_tree
from coordinator.trees import Tree


class TreeKind(StrEnum):
    """How the trees are found."""

    SPANNING_TREE = "spanning-tree"  # one tree, elected by the Spanning Tree Protocol
    DOUBLE_BINARY_TREES = "double-binary-trees"  # two, for the two halves of the model


@dataclass(frozen=True)
class Topology:
    """A communication graph and the one or two trees in it; with two, both have the same shape."""

    graph: Graph
    kind: TreeKind
    roots: tuple[int, ...]  # of each tree
    trees: tuple[Tree, ...]

    @property
    def root(self) -> int:
        """The elected bridge; of two trees, the root of the first."""
        return self.roots[0]

    @property
    def n(self) -> int:
        """Number of peers."""
        return self.graph.n

    @property
    def diameter(self) -> int:
        """Hops between the peers farthest apart, in either tree."""
        return max(tree.diameter for tree in self.trees)

    @property
    def lr_factor(self) -> Fraction:
        """The learning-rate factor of either tree (`Tree.lr_factor` has more to choose from)."""
        return self.trees[0].lr_factor()

    def as_json(self, labels: Sequence[int] | None = None) -> dict[str, Any]:
        """Root and trees as JSON values; peers by their `labels`, which ascend, if given."""
        name = labels if labels is not None else range(self.n)
        return {
            "root": name[self.root],
            "trees": [
                {
                    "edges": [[name[u], name[v]] for u, v in tree.edges],
                    "diameter": tree.diameter,
                    "lr_factor": str(tree.lr_factor()),
                }
                for tree in self.trees
            ],
        }


def build_topology(
    graph: Graph,
    kind: TreeKind = TreeKind.SPANNING_TREE,
    priorities: Sequence[int] | None = None,
) -> Topology:
    """Find the trees of this kind in the graph.

    `priorities` (by peer, least is best) sway who becomes root of a spanning tree. Raises
    `GraphError` where the graph lacks an edge that the double binary trees need.
    """
    if kind is TreeKind.DOUBLE_BINARY_TREES:
        trees = tuple(_tree_within(graph, make(graph.n)) for make in (in_order_tree, mirrored_tree))
        return Topology(graph, kind, (0, mirror(0, graph.n)), trees)
    elected = spanning_tree(graph, priorities)
    return Topology(graph, kind, (elected.root,), (Tree(graph.n, elected.edges),))


def _tree_within(graph: Graph, edges: list[tuple[int, int]]) -> Tree:
    for u, v in sorted(edges):
        if v not in graph.costs[u]:
            raise GraphError(
                "tree",
                TreeKind.DOUBLE_BINARY_TREES.value,
                f"the graph lacks the edge {min(u, v)}-{max(u, v)} (peers counted from 0)",
                "use the graph double-binary-trees or complete, or the tree spanning-tree",
            )
    return Tree(graph.n, tuple(edges))
