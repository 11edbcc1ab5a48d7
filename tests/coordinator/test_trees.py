"""Tree facts: closed forms against counting, and the learning-rate factor against relaying."""

from fractions import Fraction

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.graphs import GraphError, build_graph
from coordinator.trees import Tree, lr_factor_by_propagation
from tests.shapes import trees


def named_tree(name: str, n: int) -> Tree:
    return Tree(n, tuple(edge[:2] for edge in build_graph(name, n).edges))


def hops(tree: Tree) -> dict[int, dict[int, int]]:
    graph = nx.Graph(tree.edges)
    graph.add_nodes_from(range(tree.n))
    return dict(nx.all_pairs_shortest_path_length(graph))


@pytest.mark.parametrize("edges", [((0, 1),), ((0, 1), (1, 2), (2, 0)), ((0, 1), (0, 1))])
def test_only_trees_are_trees(edges: tuple[tuple[int, int], ...]) -> None:
    with pytest.raises(GraphError):
        Tree(3, edges)


def test_edges_are_stored_in_one_order() -> None:
    assert Tree(3, ((2, 1), (1, 0))).edges == ((0, 1), (1, 2))


@given(trees(most=14))
def test_the_diameter_is_the_longest_distance(tree: Tree) -> None:
    assert tree.diameter == max(h for row in hops(tree).values() for h in row.values())


@given(trees(most=14))
def test_peers_behind_each_edge(tree: Tree) -> None:
    for me in range(tree.n):
        graph = nx.Graph(tree.edges)
        graph.add_nodes_from(range(tree.n))
        graph.remove_node(me)
        expected = {k: len(nx.node_connected_component(graph, k)) for k in tree.neighbours[me]}
        assert tree.behind(me) == expected
        assert list(tree.behind(me)) == sorted(expected)


@pytest.mark.parametrize(
    ("name", "n", "factor"),
    [("chain", 4, "3/2"), ("chain", 16, "43/8"), ("star", 16, "233/128"), ("chain", 1, "1")],
)
def test_known_factors(name: str, n: int, factor: str) -> None:
    assert str(named_tree(name, n).lr_factor()) == factor


def test_two_peers_are_exact_all_reduce() -> None:
    assert named_tree("chain", 2).lr_factor() == 1


@given(trees(most=14))
def test_closed_form_is_what_relaying_measures(tree: Tree) -> None:
    n = tree.n
    twice_wiener_index = sum(h for row in hops(tree).values() for h in row.values())
    assert tree.lr_factor() == Fraction(twice_wiener_index, n * n) + Fraction(1, n)
    assert tree.lr_factor(overlap=True) == 1 + Fraction(twice_wiener_index, n * n)
    assert tree.lr_factor() == lr_factor_by_propagation(tree)
    assert tree.lr_factor(overlap=True) == lr_factor_by_propagation(tree, overlap=True)


@given(trees(most=14), st.data())
def test_weighted_factor_is_the_weighted_mean_delay(tree: Tree, data: st.DataObject) -> None:
    w = data.draw(st.lists(st.integers(0, 9), min_size=tree.n, max_size=tree.n).filter(any))
    total = sum(w) ** 2
    pairs = [(w[i] * w[j], h) for i, row in hops(tree).items() for j, h in row.items()]
    delay = Fraction(sum(ww * max(h - 1, 0) for ww, h in pairs), total)
    assert tree.lr_factor(weights=w) == 1 + delay
    late = Fraction(sum(ww * h for ww, h in pairs), total)
    assert tree.lr_factor(weights=w, overlap=True) == 1 + late
    assert tree.lr_factor(weights=[3] * tree.n) == tree.lr_factor()


@pytest.mark.parametrize("weights", [[1], [0, 0, 0], [1, -1, 1]])
def test_unusable_weights_are_refused(weights: list[int]) -> None:
    with pytest.raises(GraphError, match="give a weight for each peer"):
        named_tree("chain", 3).lr_factor(weights=weights)


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize(("name", "n"), [("chain", 6), ("star", 7), ("heap-binary-tree", 9)])
def test_the_factor_makes_up_for_the_energy_an_update_loses(
    name: str, n: int, overlap: bool
) -> None:
    """RelaySGD, appendix D.1: "initialing a scalar model for each worker to zero, updating the
    models to 1, and running RelaySGD until convergence with no further model updates."

    The update comes once all models are in sight of all; earlier ones weigh more.
    """
    tree = named_tree(name, n)
    x = np.zeros(n)
    sums: dict[tuple[int, int], tuple[float, int]] = {}
    for step in range(2000):
        half = x + 1 if step == 2 * n else x
        sent = {
            (i, j): (
                half[i] + sum(sums.get((k, i), (0, 0))[0] for k in tree.neighbours[i] if k != j),
                1 + sum(sums.get((k, i), (0, 0))[1] for k in tree.neighbours[i] if k != j),
            )
            for i in range(n)
            for j in tree.neighbours[i]
        }
        used = sums if overlap else sent
        here = [[used.get((j, i), (0.0, 0)) for j in tree.neighbours[i]] for i in range(n)]
        count = np.array([1 + sum(c for _, c in row) for row in here])
        total = np.array([sum(m for m, _ in row) for row in here])
        x = (half + total + (n - count) * x) / n
        sums = sent
    assert np.ptp(x) < 1e-12
    assert float(tree.lr_factor(overlap=overlap)) == pytest.approx(1 / x[0], rel=1e-9)
