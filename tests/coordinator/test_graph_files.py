"""Graph files: what they mean, and one clear line about whatever is wrong with them."""

from pathlib import Path

import networkx as nx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.graph_files import parse_edge_list, parse_graphml, read_graph
from coordinator.graphs import Edge, Graph, GraphError, build_graph

SQUARE = """
# four machines in two racks
10 20        # same rack
30 40 1
20 30 5

10 40 7
"""


def test_edge_list_keeps_labels_and_defaults_to_cost_one() -> None:
    graph, labels = parse_edge_list(SQUARE)
    assert labels == (10, 20, 30, 40)
    assert graph == Graph(4, (Edge(0, 1), Edge(2, 3), Edge(1, 2, 5), Edge(0, 3, 7)))


@given(st.integers(2, 20), st.integers(0, 99), st.data())
def test_what_is_written_is_read(n: int, seed: int, data: st.DataObject) -> None:
    labels = sorted(data.draw(st.sets(st.integers(-50, 500), min_size=n, max_size=n)))
    edges = build_graph("erdos-renyi", n, seed=seed).edges
    costs = data.draw(st.lists(st.integers(1, 99), min_size=len(edges), max_size=len(edges)))
    graph = Graph(n, tuple(Edge(u, v, c) for (u, v, _), c in zip(edges, costs, strict=True)))
    lines = [f"{labels[u]} {labels[v]} {c}" for u, v, c in graph.edges]
    assert parse_edge_list("\n".join(lines)) == (graph, tuple(labels))

    drawn = nx.Graph()
    drawn.add_weighted_edges_from([(labels[u], labels[v], c) for u, v, c in graph.edges], "cost")
    text = "\n".join(nx.generate_graphml(drawn))
    assert parse_graphml(text) == (graph, tuple(labels))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("0 1\n1 1 2", "net.txt line 2 = (1, 1, 2): a peer has no edge to itself; drop the self"),
        ("\n0 1 0", "net.txt line 2 = (0, 1, 0): the cost 0 is not a positive integer; use 1 or"),
        ("0 1 -3", "net.txt line 1 = (0, 1, -3): the cost -3 is not a positive integer"),
        ("0 1 2.5", "net.txt line 1 = '2.5': not an integer; write peers and costs as integers"),
        ("0 one", "net.txt line 1 = 'one': not an integer"),
        ("0 1_0", "net.txt line 1 = '1_0': not an integer"),
        ("0", "net.txt line 1 = '0': 1 fields; write u v cost, or u v"),
        ("0 1 2 3", "net.txt line 1 = '0 1 2 3': 4 fields"),
        ("0 1 4\n\n1 0 5", "net.txt line 3 = '1 0 5': line 1 gives this edge already"),
        ("10 20\n30 40", "net.txt = '4 peers': disconnected, in 2 parts: {10 20}, {30 40}; add"),
        ("# nothing yet\n", "graph file = 'net.txt': no edges; write one edge a line: u v cost"),
    ],
)
def test_bad_edge_lists_name_the_line(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "net.txt"
    path.write_text(text)
    with pytest.raises(GraphError) as refused:
        read_graph(path)
    assert str(refused.value).startswith(says)
    assert "\n" not in str(refused.value)


def graphml(inside: str, edgedefault: str = "undirected", keys: str = "") -> str:
    namespace = "http://graphml.graphdrawing.org/xmlns"
    graph = f'<graph edgedefault="{edgedefault}">{inside}</graph>'
    return f'<?xml version="1.0"?><graphml xmlns="{namespace}">{keys}{graph}</graphml>'


NODES = '<node id="n3"/><node id="n8"/>'
KEYS = (
    '<key id="d0" for="edge" attr.name="weight" attr.type="double"><default>4.0</default></key>'
    '<key id="d1" for="edge" attr.name="cost" attr.type="long"/>'
    '<key id="d2" for="node" attr.name="cost" attr.type="long"><default>9</default></key>'
)


@pytest.mark.parametrize(
    ("data", "cost"),
    [
        ("", 4),  # the weight's default
        ('<data key="d0">2.0</data>', 2),
        ('<data key="d0">2.0</data><data key="d1">6</data>', 6),  # cost goes before weight
    ],
)
def test_graphml_takes_cost_then_weight_then_default(data: str, cost: int) -> None:
    edge = f'<edge source="n8" target="n3">{data}</edge>'
    graph, labels = parse_graphml(graphml(NODES + edge, keys=KEYS))
    assert (graph.edges, labels) == ((Edge(0, 1, cost),), (3, 8))


def test_graphml_without_costs_and_with_one_peer() -> None:
    assert parse_graphml(graphml(NODES + '<edge source="n3" target="n8"/>')).graph.edges == (
        Edge(0, 1, 1),
    )
    assert parse_graphml(graphml('<node id="5"/>')) == (Graph(1, ()), (5,))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("<graphml", "graph file = 'GraphML': not XML"),
        ("<graphml/>", "no <graph> element"),
        (graphml(""), "no <node> elements; write one for each peer"),
        (graphml(NODES), "disconnected, in 2 parts: {3}, {8}"),
        (graphml('<node id="a"/>'), "GraphML node = 'a': not an integer"),
        (graphml(NODES + '<edge source="n3" target="n8"/>', "directed"), "= 'directed': links go"),
        (graphml(NODES + '<edge source="n3" target="n3"/>'), "no edge to itself"),
        (graphml(NODES + '<edge source="n3" target="n9"/>'), "there is no peer 9"),
        (
            graphml(
                NODES + '<edge source="n3" target="n8"><data key="d1">0</data></edge>', "", KEYS
            ),
            "the cost 0 is not a positive integer",
        ),
        (
            graphml(
                NODES + '<edge source="n3" target="n8"><data key="d0">.5</data></edge>', "", KEYS
            ),
            "GraphML edge n3-n8 = '.5': not an integer",
        ),
    ],
)
def test_bad_graphml_is_refused(text: str, says: str) -> None:
    with pytest.raises(GraphError) as refused:
        parse_graphml(text)
    assert says in str(refused.value)


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    path = tmp_path / "net.txt"
    path.write_text("3 8 2\n", encoding="utf-8-sig")
    assert read_graph(path).graph.edges == (Edge(0, 1, 2),)


def test_the_suffix_chooses_the_format(tmp_path: Path) -> None:
    path = tmp_path / "net.GraphML"
    path.write_text(graphml(NODES + '<edge source="n3" target="n8"/>'))
    assert read_graph(path).labels == (3, 8)


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(GraphError, match="No such file or directory; give a file to read"):
        read_graph(tmp_path / "absent.txt")
    (tmp_path / "binary.txt").write_bytes(b"0 1\n\xff\xfe")
    with pytest.raises(GraphError, match="not UTF-8 text"):
        read_graph(tmp_path / "binary.txt")
