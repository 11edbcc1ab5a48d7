"""Named graphs have the shape their name promises, and no invalid graph comes into being."""

import random
import subprocess
import sys

import networkx as nx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.graphs import (
    GRAPH_NAMES,
    Edge,
    Graph,
    GraphError,
    build_graph,
    candidate_graph,
    connected_parts,
)


def degrees(graph: Graph) -> list[int]:
    return sorted(graph.degree(peer) for peer in range(graph.n))


def as_networkx(graph: Graph) -> nx.Graph:
    made = nx.Graph([edge[:2] for edge in graph.edges])
    made.add_nodes_from(range(graph.n))
    return made


# --- the value ---------------------------------------------------------------------------------


def test_edges_are_stored_in_one_order() -> None:
    graph = Graph(3, (Edge(2, 1, 5), Edge(1, 0)))
    assert graph.edges == (Edge(0, 1, 1), Edge(1, 2, 5))
    assert graph == Graph(3, (Edge(0, 1), Edge(1, 2, 5)))
    assert graph.costs == ({1: 1}, {0: 1, 2: 5}, {1: 5})
    assert graph.neighbours(1) == (0, 2)


@pytest.mark.parametrize(
    ("n", "edges", "says"),
    [
        (2, [Edge(0, 0)], "graph = (0, 0, 1): a peer has no edge to itself; drop the self-loop"),
        (2, [Edge(0, 1, 0)], "the cost 0 is not a positive integer; use 1 or more"),
        (2, [Edge(0, 1, True)], "the cost True is not a positive integer"),
        (2, [Edge(0, 1, 2.5)], "the cost 2.5 is not a positive integer"),  # type: ignore[arg-type]
        (2, [Edge(0, 2)], "there is no peer 2"),
        (2, [Edge(0, 1), Edge(1, 0)], "this edge is given twice"),
        (0, [], "peers = 0: not a number of peers; use 1 or more"),
        (
            4,
            [Edge(0, 2), Edge(1, 3)],
            "graph = '4 peers': disconnected, in 2 parts: {0 2}, {1 3}; add edges between",
        ),
        (2, [], "in 2 parts: {0}, {1}"),
        (30, [Edge(i, i + 1) for i in range(28)], "in 2 parts: {0 1 2 3 4 5 6 7 ...}, {29}"),
        (9, [], "in 9 parts: {0}, {1}, {2}, {3}, ...;"),
    ],
)
def test_invalid_graphs_are_refused_in_one_line(n: int, edges: list[Edge], says: str) -> None:
    with pytest.raises(GraphError) as refused:
        Graph(n, tuple(edges))
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_induced_graph_is_renumbered_in_order() -> None:
    ring = Graph(5, tuple(Edge(i, (i + 1) % 5, i + 1) for i in range(5)))
    assert ring.induced([4, 0, 3]) == Graph(3, (Edge(0, 2, 5), Edge(1, 2, 4)))
    with pytest.raises(GraphError, match=r"in 2 parts: \{0\}, \{2 3\}"):
        ring.induced([0, 2, 3])


def test_connected_parts_are_ordered_by_least_peer() -> None:
    assert connected_parts([5, 1, 3, 2], [(3, 1)]) == ((1, 3), (2,), (5,))


# --- graphs with a name ------------------------------------------------------------------------


def test_chain_ring_star_complete() -> None:
    assert [e[:2] for e in build_graph("chain", 4).edges] == [(0, 1), (1, 2), (2, 3)]
    assert [e[:2] for e in build_graph("ring", 4).edges] == [(0, 1), (0, 3), (1, 2), (2, 3)]
    assert [e[:2] for e in build_graph("star", 4).edges] == [(0, 1), (0, 2), (0, 3)]
    assert len(build_graph("complete", 7).edges) == 21


@pytest.mark.parametrize("name", ["chain", "ring", "star", "complete", "binary-tree"])
def test_one_and_two_peers_are_swarms_too(name: str) -> None:
    assert build_graph(name, 1).edges == ()
    assert build_graph(name, 2).edges == (Edge(0, 1),)


def test_binary_trees_number_children_as_documented() -> None:
    balanced = [e[:2] for e in build_graph("binary-tree", 7).edges]
    assert balanced == [(0, 1), (0, 2), (1, 3), (1, 4), (2, 5), (2, 6)]
    heap = [e[:2] for e in build_graph("heap-binary-tree", 8).edges]
    assert heap == [(0, 1), (1, 2), (1, 3), (2, 4), (2, 5), (3, 6), (3, 7)]


@pytest.mark.parametrize(("n", "sides"), [(9, (3, 3)), (12, (3, 4)), (16, (4, 4)), (40, (5, 8))])
def test_torus_is_the_most_square_grid(n: int, sides: tuple[int, int]) -> None:
    torus = build_graph("torus", n)
    assert degrees(torus) == [4] * n
    assert nx.is_isomorphic(as_networkx(torus), nx.grid_2d_graph(*sides, periodic=True))


def test_exponential_reaches_powers_of_two() -> None:
    assert build_graph("exponential", 16).neighbours(0) == (1, 2, 4, 8, 12, 14, 15)
    assert degrees(build_graph("exponential", 5)) == [4] * 5


def test_double_binary_trees_need_few_links() -> None:
    assert max(degrees(build_graph("double-binary-trees", 64))) <= 4


def test_social_network_is_daviss() -> None:
    graph = build_graph("social-network", 32)
    assert nx.is_isomorphic(as_networkx(graph), nx.davis_southern_women_graph())
    # peer 0 is Evelyn Jefferson, who was at eight of the events 18..31
    assert graph.neighbours(0) == (18, 19, 20, 21, 22, 23, 25, 26)


@given(n=st.integers(4, 40), degree=st.integers(2, 5), seed=st.integers(0, 1000))
def test_random_regular(n: int, degree: int, seed: int) -> None:
    if degree >= n or n * degree % 2:
        with pytest.raises(GraphError, match="no graph of"):
            build_graph("random-regular", n, degree=degree, seed=seed)
        return
    graph = build_graph("random-regular", n, degree=degree, seed=seed)
    assert degrees(graph) == [degree] * n
    assert graph == build_graph("random-regular", n, degree=degree, seed=seed)


@given(n=st.integers(1, 60), seed=st.integers(0, 1000))
def test_erdos_renyi_is_connected_and_repeatable(n: int, seed: int) -> None:
    graph = build_graph("erdos-renyi", n, seed=seed)  # the class itself refuses a disconnected one
    assert graph == build_graph("erdos-renyi", n, seed=seed)


def test_seeds_and_probabilities_matter() -> None:
    assert build_graph("erdos-renyi", 20, seed=1) != build_graph("erdos-renyi", 20, seed=2)
    assert build_graph("random-regular", 20, seed=1) != build_graph("random-regular", 20, seed=2)
    assert len(build_graph("erdos-renyi", 20, probability=1.0).edges) == 190


def test_random_graphs_leave_the_global_random_state_alone() -> None:
    before = random.getstate()
    build_graph("erdos-renyi", 20, seed=1)
    build_graph("random-regular", 20, seed=1)
    assert random.getstate() == before


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6, 7, 16, 31, 32, 33, 34, 64])
def test_candidate_graph_is_degree_bounded(n: int) -> None:
    expected = n - 1 if n <= 4 else 4 if n % 2 or n > 32 else 3
    assert degrees(candidate_graph(n, seed=3)) == [expected] * n


@pytest.mark.parametrize(
    ("name", "n", "options", "says"),
    [
        ("rng", 4, {}, "graph = 'rng': unknown graph; did you mean ring? use one of chain, ring"),
        ("zzz", 4, {}, "graph = 'zzz': unknown graph; use one of chain"),
        ("file", 4, {}, "give the file"),
        ("torus", 7, {}, "peers = 7: a torus has rows times columns peers"),
        ("social-network", 16, {}, "peers = 16: the social-network graph has 32 peers; use 32"),
        ("random-regular", 5, {}, "degree = 3: no graph of 5 peers has this degree"),
        ("random-regular", 4, {"degree": 0}, "degree = 0"),
        ("random-regular", 6, {"degree": 1}, "in a row were disconnected; raise it"),
        ("erdos-renyi", 5, {"probability": 0.0}, "probability = 0.0: not a probability"),
        ("erdos-renyi", 5, {"probability": 1.5}, "probability = 1.5: not a probability"),
        ("erdos-renyi", 50, {"probability": 0.001}, "probability = 0.001: 200 graphs of 50 peers"),
        ("ring", 0, {}, "peers = 0"),
    ],
)
def test_impossible_requests_name_field_value_and_remedy(
    name: str, n: int, options: dict[str, float], says: str
) -> None:
    with pytest.raises(GraphError) as refused:
        build_graph(name, n, **options)  # type: ignore[arg-type]
    assert says in str(refused.value)


def test_every_name_can_be_built() -> None:
    for name in GRAPH_NAMES:
        assert build_graph(name, 32).n == 32


def test_importing_and_building_brings_no_numpy() -> None:
    code = (
        "import sys; from coordinator import gossip_weights as w, graphs as g, topology as t\n"
        "for name in g.GRAPH_NAMES: t.build_topology(g.build_graph(name, 32))\n"
        "w.auto(g.candidate_graph(32))\n"
        "sys.exit(','.join({'numpy', 'torch', 'matplotlib', 'grpc'} & set(sys.modules)) or 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
