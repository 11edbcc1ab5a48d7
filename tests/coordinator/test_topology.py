"""From a graph to its trees, with the facts that views are made of."""

from fractions import Fraction

import pytest

from coordinator.graphs import Edge, Graph, GraphError, build_graph
from coordinator.topology import TreeKind, build_topology


def test_spanning_tree_of_a_weighted_graph() -> None:
    graph = Graph(4, (Edge(0, 1, 4), Edge(1, 2, 2), Edge(0, 2, 9), Edge(2, 3)))
    found = build_topology(graph)
    assert (found.graph, found.kind, found.root) == (graph, TreeKind.SPANNING_TREE, 0)
    assert [tree.edges for tree in found.trees] == [((0, 1), (1, 2), (2, 3))]
    assert (found.n, found.diameter, found.lr_factor) == (4, 3, Fraction(3, 2))
    assert found.trees[0].behind(1) == {0: 1, 2: 2}


def test_priorities_move_the_root() -> None:
    assert build_topology(build_graph("chain", 3), priorities=[1, 1, 0]).root == 2


@pytest.mark.parametrize("name", ["complete", "double-binary-trees"])
@pytest.mark.parametrize("n", [1, 2, 5, 16, 33])
def test_both_double_binary_trees_have_the_same_facts(name: str, n: int) -> None:
    found = build_topology(build_graph(name, n), TreeKind.DOUBLE_BINARY_TREES)
    first, second = found.trees
    assert first.lr_factor() == second.lr_factor() == found.lr_factor
    assert first.diameter == second.diameter == found.diameter
    assert found.roots == (0, {1: 0, 2: 1, 5: 1, 16: 15, 33: 1}[n])


def test_double_binary_trees_need_their_edges() -> None:
    with pytest.raises(GraphError, match="tree = 'double-binary-trees': the graph lacks the edge"):
        build_topology(build_graph("ring", 8), TreeKind.DOUBLE_BINARY_TREES)


def test_json_names_peers_by_their_labels() -> None:
    found = build_topology(build_graph("chain", 3), priorities=[1, 0, 1])
    assert found.as_json() == {
        "root": 1,
        "trees": [{"edges": [[0, 1], [1, 2]], "diameter": 2, "lr_factor": "11/9"}],
    }
    labelled = found.as_json([7, 9, 30])
    assert (labelled["root"], labelled["trees"][0]["edges"]) == (9, [[7, 9], [9, 30]])
