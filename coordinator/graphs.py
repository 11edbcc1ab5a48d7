"""Communication graphs: who can reach whom, and at what cost.

What belongs here: the value `Graph`, what makes one valid, and the graphs that have a name. Peers
are the integers 0..n-1, the lowest being the best bridge id; whoever has other names for them maps
them. Nothing here knows of trees (`trees`), files (`graph_files`) or mixing (`gossip_weights`).
"""

from __future__ import annotations

import difflib
import math
import random
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import networkx as nx

from coordinator.double_binary_trees import in_order_tree, mirrored_tree

Pairs = list[tuple[int, int]]

MAX_DRAWS = 200  # of a random graph, before its parameters are called hopeless


class GraphError(ValueError):
    """A graph is unusable. The one-line message names the field, its value and the remedy."""

    def __init__(self, field: str, value: object, problem: str, remedy: str) -> None:
        self.field, self.value, self.problem, self.remedy = field, value, problem, remedy
        super().__init__(f"{field} = {value!r}: {problem}; {remedy}")


class Edge(NamedTuple):
    """An undirected link, u < v, with its cost: a positive integer, the lower the better."""

    u: int
    v: int
    cost: int = 1


@dataclass(frozen=True)
class Graph:
    """A connected, undirected graph over the peers 0..n-1, without self-loops or double edges.

    `edges` may be given in any order and either direction; they are stored sorted, with u < v.
    Raises `GraphError` on anything that breaks these promises, so that nobody checks again.
    """

    n: int
    edges: tuple[Edge, ...]

    def __post_init__(self) -> None:
        """Check every promise of the class, then store the edges in their one order."""
        _require_size(self.n)
        check_edges(self.edges, range(self.n))
        ordered = sorted(Edge(min(e.u, e.v), max(e.u, e.v), e.cost) for e in self.edges)
        object.__setattr__(self, "edges", tuple(ordered))

    @cached_property
    def costs(self) -> tuple[Mapping[int, int], ...]:
        """For each peer, its neighbours in ascending order, each with the cost of the edge."""
        costs: list[dict[int, int]] = [{} for _ in range(self.n)]
        for u, v, cost in self.edges:
            costs[u][v] = costs[v][u] = cost
        return tuple(dict(sorted(row.items())) for row in costs)

    def neighbours(self, peer: int) -> tuple[int, ...]:
        """The peers one hop from `peer`, ascending, `peer` itself not among them."""
        return tuple(self.costs[peer])

    def degree(self, peer: int) -> int:
        """Number of neighbours of `peer`."""
        return len(self.costs[peer])

    def induced(self, keep: Collection[int]) -> Graph:
        """The graph among the peers `keep` alone, renumbered 0.. in ascending order.

        Raises `GraphError`, in the old numbers, when they no longer form one part.
        """
        number = {peer: i for i, peer in enumerate(sorted(keep))}
        edges = [e for e in self.edges if e.u in number and e.v in number]
        check_edges(edges, sorted(keep))
        return Graph(len(number), tuple(Edge(number[u], number[v], c) for u, v, c in edges))


def without_edges_among(graph: Graph, dial_only: Collection[int]) -> Graph:
    """The graph without edges between two peers that can only dial out.

    Where it falls apart without them it gets new edges of cost 1, as few as link its parts, each at
    the peers that have the fewest so far. Raises `GraphError` if all peers of several are among
    `dial_only`.
    """
    kept = [edge for edge in graph.edges if edge.u not in dial_only or edge.v not in dial_only]
    parts = connected_parts(range(graph.n), kept_pairs := [(e.u, e.v) for e in kept])
    if len(parts) > 1 and len(dial_only) == graph.n:
        raise GraphError("peers", graph.n, "all of them can only dial out", "open the port of one")
    degree = Counter(peer for pair in kept_pairs for peer in pair)

    def idlest(peers: Iterable[int]) -> int:
        return min(peers, key=lambda peer: (degree[peer], peer))

    linked: list[int] = []
    # A part without a reachable peer is a single peer: parts with one come first.
    for part in sorted(parts, key=lambda part: all(peer in dial_only for peer in part)):
        if linked:
            hub = idlest(peer for peer in linked if peer not in dial_only)
            end = idlest([peer for peer in part if peer not in dial_only] or part)
            kept.append(Edge(hub, end))
            degree.update((hub, end))
        linked += part
    return Graph(graph.n, tuple(kept))


def check_edges(edges: Iterable[Edge], nodes: Collection[int], field: str = "graph") -> None:
    """Raise `GraphError` unless `edges` form a valid connected graph over `nodes`."""
    known, seen = set(nodes), set()
    for edge in edges:
        check_edge(edge, field)
        pair = frozenset((edge.u, edge.v))
        if not pair <= known:
            stranger = min(pair - known)
            raise GraphError(field, tuple(edge), f"there is no peer {stranger}", "use known peers")
        if pair in seen:
            raise GraphError(field, tuple(edge), "this edge is given twice", "give it once")
        seen.add(pair)
    _require_connected(connected_parts(nodes, [tuple(p) for p in seen]), field)


def check_edge(edge: Edge, field: str = "graph") -> None:
    """Raise `GraphError` if the edge is a self-loop or its cost is no positive integer."""
    if edge.u == edge.v:
        raise GraphError(field, tuple(edge), "a peer has no edge to itself", "drop the self-loop")
    if type(edge.cost) is not int or edge.cost < 1:
        raise GraphError(
            field, tuple(edge), f"the cost {edge.cost!r} is not a positive integer", "use 1 or more"
        )


def connected_parts(
    nodes: Collection[int], pairs: Iterable[Sequence[int]]
) -> tuple[tuple[int, ...], ...]:
    """The connected parts of a graph, each ascending, ordered by their least peer."""
    graph = nx.Graph()
    graph.add_nodes_from(nodes)
    graph.add_edges_from(pairs)
    return tuple(sorted(tuple(sorted(part)) for part in nx.connected_components(graph)))


def _require_connected(parts: Sequence[Sequence[int]], field: str) -> None:
    if len(parts) == 1:
        return
    named = [" ".join(map(str, part[:8])) + (" ..." if len(part) > 8 else "") for part in parts[:4]]
    parts_text = ", ".join(f"{{{text}}}" for text in named) + (", ..." if len(parts) > 4 else "")
    raise GraphError(
        field,
        f"{sum(map(len, parts))} peers",
        f"disconnected, in {len(parts)} parts: {parts_text}",
        "add edges between the parts",
    )


# --- graphs with a name ------------------------------------------------------------------------


def build_graph(
    name: str, n: int, *, seed: int = 0, degree: int = 3, probability: float = 0.5
) -> Graph:
    """The graph called `name` (one of `GRAPH_NAMES`) over `n` peers, every cost 1.

    `seed` and `degree` shape random-regular, `seed` and the `probability` of each edge erdos-renyi;
    both are drawn again until connected, which a probability above ln(n) / n soon leads to.
    The same arguments give the same graph under one version of networkx.
    Raises `GraphError` for an unknown name and for sizes that the graph does not exist in.
    """
    _require_size(n)
    if name == "random-regular":
        return _random_regular(n, degree, seed)
    if name == "erdos-renyi":
        return _erdos_renyi(n, probability, seed)
    if name not in _FIXED:
        raise GraphError("graph", name, "unknown graph", _nearest(name))
    return _unit_cost(n, _FIXED[name](n))


def candidate_graph(n: int, seed: int = 0) -> Graph:
    """A sparse graph to elect a tree on where everyone reaches everyone at similar cost.

    On a complete graph the Spanning Tree Protocol yields a star, whose hub is overloaded; here no
    peer has more than four neighbours. Complete for n <= 4, else random 3-regular; degree 4 for
    odd n, where no 3-regular graph exists, and above 32 peers.
    """
    if n <= 4:
        return build_graph("complete", n)
    return _random_regular(n, 4 if n % 2 or n > 32 else 3, seed)


def _chain(n: int) -> Pairs:
    return _pairs(nx.path_graph(n))


def _ring(n: int) -> Pairs:
    """Degenerates to a single edge for two peers and to a lone peer for one."""
    return _pairs(nx.cycle_graph(n)) if n > 2 else _chain(n)


def _star(n: int) -> Pairs:
    return _pairs(nx.star_graph(n - 1))  # networkx counts the leaves


def _complete(n: int) -> Pairs:
    return _pairs(nx.complete_graph(n))


def _binary_tree(n: int) -> Pairs:
    """Balanced: peer w has the children 2w+1 and 2w+2."""
    return [(w, (w - 1) // 2) for w in range(1, n)]


def _heap_binary_tree(n: int) -> Pairs:
    """The RelaySGD authors': peers 1.. with the children 2w and 2w+1, peer 0 hung under peer 1."""
    return [(w, w // 2) for w in range(1, n)]


def _double_binary_trees(n: int) -> Pairs:
    """Every edge of either tree."""
    return list({(min(pair), max(pair)) for pair in in_order_tree(n) + mirrored_tree(n)})


def _torus(n: int) -> Pairs:
    """The most square of the grids with both sides at least 2, rows wrapped around both ways."""
    rows = max((r for r in range(2, math.isqrt(n) + 1) if n % r == 0), default=None)
    if rows is None:
        raise GraphError(
            "peers",
            n,
            "a torus has rows times columns peers, both at least 2",
            "use a number that is not prime, such as 4, 6, 8, 9 or 16",
        )
    grid = nx.grid_2d_graph(rows, n // rows, periodic=True)
    return _pairs(nx.convert_node_labels_to_integers(grid, ordering="sorted"))


def _exponential(n: int) -> Pairs:
    """Peer i reaches i + 1, 2, 4, ... (mod n): the static form of the exponential graph."""
    return _pairs(nx.circulant_graph(n, [2**k for k in range((n - 1).bit_length())]))


def _social_network(n: int) -> Pairs:
    """Davis's Southern Women (1941): peers 0..17 are women, 18..31 the events they attended."""
    if n != 32:
        raise GraphError("peers", n, "the social-network graph has 32 peers", "use 32")
    return _pairs(nx.convert_node_labels_to_integers(nx.davis_southern_women_graph()))


def _random_regular(n: int, degree: int, seed: int) -> Graph:
    if not 0 < degree < n or n * degree % 2:
        raise GraphError(
            "degree",
            degree,
            f"no graph of {n} peers has this degree at each",
            "use a degree from 1 to peers - 1, with an even product of peers and degree",
        )
    rng = random.Random(seed)
    return _first_connected(
        n, lambda: _pairs(nx.random_regular_graph(degree, n, seed=rng)), "degree", degree
    )


def _erdos_renyi(n: int, p: float, seed: int) -> Graph:
    if not 0 < p <= 1:
        raise GraphError("probability", p, "not a probability of an edge", "use 0 < p <= 1")
    rng = random.Random(seed)
    return _first_connected(
        n, lambda: _pairs(nx.fast_gnp_random_graph(n, p, seed=rng)), "probability", p
    )


def _first_connected(n: int, draw: Callable[[], Pairs], field: str, value: float) -> Graph:
    for _ in range(MAX_DRAWS):
        pairs = draw()
        if len(connected_parts(range(n), pairs)) == 1:
            return _unit_cost(n, pairs)
    raise GraphError(
        field, value, f"{MAX_DRAWS} graphs of {n} peers in a row were disconnected", "raise it"
    )


_FIXED: dict[str, Callable[[int], Pairs]] = {
    "chain": _chain,
    "ring": _ring,
    "star": _star,
    "complete": _complete,
    "binary-tree": _binary_tree,
    "heap-binary-tree": _heap_binary_tree,
    "double-binary-trees": _double_binary_trees,
    "torus": _torus,
    "exponential": _exponential,
    "social-network": _social_network,
}
GRAPH_NAMES: tuple[str, ...] = (*_FIXED, "random-regular", "erdos-renyi")
"""The names `build_graph` knows. Configurations add "file", read by `graph_files`."""


def _unit_cost(n: int, pairs: Pairs) -> Graph:
    return Graph(n, tuple(Edge(u, v) for u, v in pairs))


def _pairs(graph: Any) -> Pairs:
    """networkx is untyped: its edges as plain integers."""
    return [(int(u), int(v)) for u, v in graph.edges]


def _require_size(n: int) -> None:
    if type(n) is not int or n < 1:
        raise GraphError("peers", n, "not a number of peers", "use 1 or more")


def _nearest(name: str) -> str:
    if name == "file":
        return "give the file (--graph-file)"
    near = difflib.get_close_matches(name, GRAPH_NAMES, n=1, cutoff=0.4)
    did_you_mean = f"did you mean {near[0]}? " if near else ""
    return f"{did_you_mean}use one of {', '.join(GRAPH_NAMES)}"
