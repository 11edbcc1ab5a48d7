"""Mixing matrices are doubly stochastic, and D2 gets one that it converges with."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.gossip_weights import (
    D2_BOUND,
    WEIGHT_NAMES,
    Weights,
    auto,
    gossip_weights,
    lambda_min,
    lazy,
    metropolis_hastings,
    uniform,
)
from coordinator.graphs import Graph, GraphError, build_graph, candidate_graph


def matrix(weights: Weights) -> np.ndarray:
    dense = np.zeros((len(weights), len(weights)))
    for i, row in weights.items():
        for j, w in row.items():
            dense[i, j] = w
    return dense


random_graphs = st.builds(
    lambda n, seed: build_graph("erdos-renyi", n, seed=seed), st.integers(1, 24), st.integers(0, 99)
)


@given(random_graphs, st.sampled_from(["metropolis-hastings", "lazy", "auto"]))
def test_rows_and_columns_sum_to_one_exactly(graph: Graph, name: str) -> None:
    weights = gossip_weights(graph, name)
    for i, row in weights.items():
        assert sum(row.values()) == 1
        assert list(row) == sorted({i, *graph.neighbours(i)})
        assert all(weights[j][i] == w and w >= 0 for j, w in row.items())


def test_metropolis_hastings_by_hand() -> None:
    third, quarter = Fraction(1, 3), Fraction(1, 4)
    ring = metropolis_hastings(build_graph("ring", 5))
    assert ring[0] == {0: third, 1: third, 4: third}
    star = metropolis_hastings(build_graph("star", 4))
    assert star[0] == {0: quarter, 1: quarter, 2: quarter, 3: quarter}
    assert star[1] == {0: quarter, 1: Fraction(3, 4)}


def test_uniform_needs_equal_degrees() -> None:
    assert uniform(build_graph("ring", 8))[3] == dict.fromkeys((2, 3, 4), Fraction(1, 3))
    with pytest.raises(GraphError, match=r"degrees differ \(from 1 to 3\); use metropolis"):
        uniform(build_graph("star", 4))


def test_lazy_is_half_way_to_the_identity() -> None:
    assert lazy(build_graph("ring", 5))[0] == {
        0: Fraction(2, 3),
        1: Fraction(1, 6),
        4: Fraction(1, 6),
    }


def test_unknown_weights_are_refused() -> None:
    with pytest.raises(GraphError, match="weights = 'metropolis': unknown weights; use one of"):
        gossip_weights(build_graph("ring", 4), "metropolis")
    assert WEIGHT_NAMES == ("metropolis-hastings", "uniform", "lazy", "auto")


@given(random_graphs)
def test_lambda_min_is_numpys(graph: Graph) -> None:
    weights = metropolis_hastings(graph)
    expected = np.linalg.eigvalsh(matrix(weights))[0]
    assert lambda_min(weights) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("name", ["chain", "ring", "heap-binary-tree", "torus", "complete"])
def test_lambda_min_of_large_graphs(name: str) -> None:
    weights = metropolis_hastings(build_graph(name, 144))
    expected = np.linalg.eigvalsh(matrix(weights))[0]
    assert lambda_min(weights) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("graph", "name_of_choice"),
    [
        (build_graph("ring", 16), "metropolis-hastings"),  # lambda_min is -1/3 on the spot
        (build_graph("chain", 64), "metropolis-hastings"),
        (build_graph("double-binary-trees", 32), "metropolis-hastings"),  # says appendix D.4
        (build_graph("heap-binary-tree", 16), "metropolis-hastings"),
        (build_graph("heap-binary-tree", 32), "lazy"),
        (build_graph("binary-tree", 64), "lazy"),
        (build_graph("social-network", 32), "lazy"),
        (candidate_graph(32), "lazy"),
    ],
)
def test_auto_is_lazy_where_d2_would_diverge(graph: Graph, name_of_choice: str) -> None:
    assert auto(graph) == gossip_weights(graph, name_of_choice)
    least = np.linalg.eigvalsh(matrix(metropolis_hastings(graph)))[0]
    assert (least < D2_BOUND - 1e-12) == (name_of_choice == "lazy")
    assert np.linalg.eigvalsh(matrix(auto(graph)))[0] >= D2_BOUND - 1e-12
