"""Communication graphs from files: edge lists, and GraphML by the suffix `.graphml`.

What belongs here: from text to a valid `Graph` plus the labels that its peers have in the file.
Labels are integers, contiguous or not; sorted, they become the peers 0..n-1, so the lowest label is
the best bridge id. Every error names the file and, in edge lists, the line.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from coordinator.graphs import Edge, Graph, GraphError, check_edge, check_edges


class LabelledGraph(NamedTuple):
    """A graph over 0..n-1, and the label that each of these peers has in its file, ascending."""

    graph: Graph
    labels: tuple[int, ...]


def read_graph(path: Path) -> LabelledGraph:
    """Read a graph file. Raises `GraphError` if it is missing, no text, or no valid graph."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        problem = error.strerror or "unreadable"
        raise GraphError("graph file", str(path), problem, "give a file to read") from error
    except UnicodeDecodeError as error:
        raise GraphError("graph file", str(path), "not UTF-8 text", "save it as UTF-8") from error
    parse = parse_graphml if path.suffix.lower() == ".graphml" else parse_edge_list
    return parse(text, path.name)


def parse_edge_list(text: str, source: str = "edge list") -> LabelledGraph:
    """One edge a line, `u v cost`: integers, cost 1 if left out, `#` starts a comment.

    Raises `GraphError` on any other line, self-loops, costs below 1, repeated edges, parts.
    """
    edges: list[Edge] = []
    first_line: dict[frozenset[int], int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if content := line.split("#")[0].strip():
            where = f"{source} line {number}"
            edge = _edge(content, where)
            check_edge(edge, where)
            if (known := first_line.setdefault(frozenset(edge[:2]), number)) != number:
                problem = f"line {known} gives this edge already"
                raise GraphError(where, content, problem, "give it once")
            edges.append(edge)
    if not edges:
        raise GraphError("graph file", source, "no edges", "write one edge a line: u v cost")
    return _labelled(edges, {peer for edge in edges for peer in edge[:2]}, source)


def parse_graphml(text: str, source: str = "GraphML") -> LabelledGraph:
    """GraphML: node ids are integers or `n` and an integer; edges may have a `cost` or `weight`.

    The standard library reads it, as networkx's reader loads numpy, which a coordinator goes
    without. Directed edges are refused; keys other than `cost` and `weight` are ignored.
    """
    try:
        document = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise GraphError("graph file", source, f"not XML: {error}", "write GraphML") from error
    graph = document.find("{*}graph")
    if graph is None:
        raise GraphError("graph file", source, "no <graph> element", "write GraphML")
    nodes = {_node(node.get("id", ""), source) for node in graph.iterfind("{*}node")}
    if not nodes:
        raise GraphError("graph file", source, "no <node> elements", "write one for each peer")
    return _labelled(list(_graphml_edges(document, graph, source)), nodes, source)


def _labelled(edges: list[Edge], nodes: Collection[int], source: str) -> LabelledGraph:
    check_edges(edges, nodes, source)
    labels = tuple(sorted(nodes))
    number = {label: i for i, label in enumerate(labels)}
    renumbered = tuple(Edge(number[u], number[v], cost) for u, v, cost in edges)
    return LabelledGraph(Graph(len(labels), renumbered), labels)


def _edge(content: str, where: str) -> Edge:
    fields = content.split()
    if not 2 <= len(fields) <= 3:
        raise GraphError(where, content, f"{len(fields)} fields", "write u v cost, or u v")
    u, v, *cost = (_integer(text, where) for text in fields)
    return Edge(u, v, *cost)


def _integer(text: str, where: str) -> int:
    if not re.fullmatch(r"-?[0-9]{1,18}", text):
        raise GraphError(where, text, "not an integer", "write peers and costs as integers")
    return int(text)


def _node(identifier: str, source: str) -> int:
    return _integer(identifier.removeprefix("n"), f"{source} node")


def _graphml_edges(
    document: ElementTree.Element, graph: ElementTree.Element, source: str
) -> Iterator[Edge]:
    directed_by_default = graph.get("edgedefault") == "directed"
    names = {
        key.get("id"): key.get("attr.name")
        for key in document.iterfind("{*}key")
        if key.get("for") in ("edge", "all", None)
    }
    defaults = {
        names[key.get("id")]: key.findtext("{*}default")
        for key in document.iterfind("{*}key")
        if key.get("id") in names
    }
    for edge in graph.iterfind("{*}edge"):
        given = {names.get(data.get("key")): data.text for data in edge.iterfind("{*}data")}
        ends = (edge.get("source", ""), edge.get("target", ""))
        where = f"{source} edge {ends[0]}-{ends[1]}"
        if edge.get("directed", str(directed_by_default).lower()) == "true":
            raise GraphError(where, "directed", "links go both ways", "make it undirected")
        known = {name: text for name, text in (defaults | given).items() if text is not None}
        cost = known.get("cost", known.get("weight", "1")).strip().removesuffix(".0")
        yield Edge(_node(ends[0], source), _node(ends[1], source), _integer(cost, where))
