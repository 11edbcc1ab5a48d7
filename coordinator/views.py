"""The layout of an epoch: graph, trees and mixing matrix over the members that are there.

What belongs here: from the run config and a list of peer ids to everything that a peer's view says.
Pure: the simulator plays the coordinator's part with it. Peers are called by their ids here; inside
`graphs` and `trees` they are the numbers 0.. in visiting order, so the first is the best bridge.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

from coordinator.gossip_weights import Weights, gossip_weights
from coordinator.graph_files import LabelledGraph
from coordinator.graphs import (
    GRAPH_NAMES,
    Edge,
    Graph,
    GraphError,
    build_graph,
    candidate_graph,
    without_edges_among,
)
from coordinator.members import natural_order
from coordinator.topology import Topology, TreeKind, build_topology
from coordinator.trees import Tree
from relayswarm.config import RunConfig
from relayswarm.errors import ConfigError

FILE = "file"
"""The value of `topology.graph` that stands for the graph in `topology.file`."""

RANDOM_REGULAR = "random-regular"
_SETTINGS = {
    "graph": "topology.graph",
    "probability": "topology.probability",
    "graph file": "topology.file",
}
"""What the config calls the fields of a `GraphError`, where it has another name for them."""

METROPOLIS = "metropolis-hastings"
DEFAULT_WEIGHTS = {"d2": "auto"}
"""Where not Metropolis: D2 diverges on graphs whose smallest eigenvalue is below -1/3."""


@dataclass(frozen=True)
class Layout:
    """An epoch's topology in terms of peer ids."""

    members: tuple[str, ...]  # in visiting order
    topology: Topology
    weights: Weights
    overlap: bool = False  # messages are used one step later: another learning-rate factor
    notes: tuple[str, ...] = ()  # where the config could not be followed
    peer_weights: tuple[float, ...] = ()  # of members in their order; empty: all weigh the same

    @cached_property
    def _number(self) -> Mapping[str, int]:
        return {peer: i for i, peer in enumerate(self.members)}

    @property
    def root(self) -> str:
        """Root of the (first) tree."""
        return self.members[self.topology.root]

    @property
    def diameter(self) -> int:
        """Longest path in a tree, in hops."""
        return self.topology.diameter

    @cached_property
    def lr_factor(self) -> Fraction:
        """Learning-rate factor of the trees (RelaySGD, appendix D.1). Two trees have the same one,
        unless peers do not weigh the same: then it is the mean of both."""
        weights = self.peer_weights if any(self.peer_weights) else None
        trees = self.topology.trees
        factors = [tree.lr_factor(overlap=self.overlap, weights=weights) for tree in trees]
        return sum(factors, Fraction(0)) / len(factors)

    @cached_property
    def tree_edges(self) -> tuple[tuple[tuple[str, str], ...], ...]:
        """For each tree its edges, the end visited first in front."""
        return tuple(
            tuple((self.members[u], self.members[v]) for u, v in tree.edges)
            for tree in self.topology.trees
        )

    @cached_property
    def graph_edges(self) -> tuple[tuple[str, str], ...]:
        """The edges of the communication graph."""
        return tuple((self.members[e.u], self.members[e.v]) for e in self.topology.graph.edges)

    def trees(self, me: str) -> tuple[dict[str, int], ...]:
        """For each tree: my neighbours in visiting order, and how many peers are behind each."""
        mine = self._number[me]
        return tuple(
            {self.members[k]: count for k, count in tree.behind(mine).items()}
            for tree in self.topology.trees
        )

    def weights_by_peer(self) -> dict[str, float]:
        """What each member weighs, in visiting order; empty where all weigh the same."""
        return dict(zip(self.members, self.peer_weights, strict=False))

    def weight_behind(self, me: str) -> tuple[dict[str, float], ...]:
        """For each tree: what the peers behind each of its edges weigh together; nothing where all
        weigh the same."""
        if not self.peer_weights:
            return ()
        mine = self._number[me]
        return tuple(
            {
                self.members[k]: float(weight)
                for k, weight in tree.weight_behind(mine, self.peer_weights).items()
            }
            for tree in self.topology.trees
        )

    def neighbours(self, me: str) -> tuple[str, ...]:
        """My neighbours in the communication graph, in visiting order."""
        return tuple(self.members[k] for k in self.topology.graph.neighbours(self._number[me]))

    def mixing(self, me: str) -> dict[str, Fraction]:
        """My row of the mixing matrix, myself included, in visiting order."""
        return {self.members[k]: w for k, w in self.weights[self._number[me]].items()}

    def neighbourhoods(self) -> dict[str, tuple[frozenset[str], ...]]:
        """For each peer those who would notice its absence: by tree, and in the graph."""
        return {
            peer: (
                frozenset(k for tree in self.trees(peer) for k in tree),
                frozenset(self.neighbours(peer)),
            )
            for peer in self.members
        }

    @cached_property
    def place_digest(self) -> int:
        """64 bits that differ if members, trees, graph, mixing matrix or weights do: an epoch that
        has the same can go on with what was kept of the other."""
        rows = [[(k, str(w)) for k, w in self.mixing(peer).items()] for peer in self.members]
        return _digest([self.members, self.tree_edges, self.graph_edges, rows, *self._weighed])

    def digest(self, incarnations: Mapping[str, int]) -> int:
        """64 bits that differ, for all practical purposes, if members, lives, trees or weights
        differ."""
        lives = [(peer, incarnations[peer]) for peer in self.members]
        return _digest([lives, self.tree_edges, *self._weighed])

    @property
    def _weighed(self) -> list[list[str]]:
        """The weights, where there are any, exactly."""
        return [[weight.hex() for weight in self.peer_weights]] if self.peer_weights else []


def _digest(content: object) -> int:
    text = json.dumps(content, separators=(",", ":")).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


def _weighed(members: Sequence[str], given: Mapping[str, float] | None) -> tuple[float, ...]:
    """What the members weigh, times the power of two that brings the mean to between 1 and 2: no
    bit is lost, and sums are about as large as those of equal models, which every wire format can
    hold. Empty if all weigh the same."""
    weights = [(given or {}).get(peer, 1.0) for peer in members]
    total = sum(weights)
    if not total or min(weights) == max(weights):
        return () if total else tuple(weights)
    _, exponent = math.frexp(total / len(weights))
    return tuple(math.ldexp(weight, 1 - exponent) for weight in weights)


def lay_out(
    config: RunConfig,
    peers: Sequence[str],
    file_graph: LabelledGraph | None = None,
    weights: Mapping[str, float] | None = None,
    dial_only: Collection[str] = (),
) -> Layout:
    """The layout of these peers by `config.topology` and `config.algorithm.weights`.

    What cannot be had with so many peers (3-regular with 7, a file's graph that falls apart without
    the missing) is replaced by the nearest thing that can, and the layout's notes say so.
    `file_graph` is the content of `topology.file`, where the config names it; `weights` are what
    the peers weigh, 1 for those not named. There is no edge between two of `dial_only`; raises
    `GraphError` if therefore there is no tree.
    """
    members = tuple(sorted(peers, key=natural_order))
    kind = TreeKind(config.topology.tree)
    graph, notes = _graph(config, members, file_graph)
    if dial_only:
        graph, more_notes = _reachable(graph, members, dial_only)
        notes += more_notes
    try:
        topology = build_topology(graph, kind)
    except GraphError as error:
        notes.append(f"{error.problem}: the graph {kind.value} in its place")
        topology = build_topology(build_graph(kind.value, len(members)), kind)
    mixing, more_notes = _weights(config, topology.graph)
    overlap = bool(config.algorithm.overlap)
    weighed = _weighed(members, weights)
    return Layout(members, topology, mixing, overlap, (*notes, *more_notes), weighed)


def why_no_dial_only(config: RunConfig) -> str:
    """Why a run has no place for peers that can only dial out, and the remedy; '' if it has."""
    if config.topology.tree == "double-binary-trees":
        return (
            "topology.tree = 'double-binary-trees' fixes who is linked with whom; "
            "set it to 'spanning-tree'"
        )
    if config.topology.self_heal:
        return (
            "topology.self_heal = true has neighbours greet each other at their ports; "
            "set it to false"
        )
    if config.algorithm.name == "sgp":
        return "algorithm.name = 'sgp' sends to others than neighbours, too; choose another one"
    return ""


def lay_out_tree(
    config: RunConfig,
    peers: Sequence[str],
    root: str,
    tree: Iterable[tuple[str, str]],
    links: Iterable[tuple[str, str]],
    weights: Mapping[str, float] | None = None,
) -> Layout:
    """The layout of a tree that is there already, on the graph of these `links` and its own edges,
    all of the same cost; `weights` as in `lay_out`. Raises `GraphError` if it is no tree of these
    peers."""
    members = tuple(sorted(peers, key=natural_order))
    number = {peer: k for k, peer in enumerate(members)}

    def pairs(edges: Iterable[tuple[str, str]]) -> set[tuple[int, int]]:
        known = [(number[a], number[b]) for a, b in edges if a in number and b in number]
        return {(min(pair), max(pair)) for pair in known}

    edges = pairs(tree)
    graph = Graph(len(members), tuple(Edge(u, v) for u, v in edges | pairs(links)))
    trees = (Tree(len(members), tuple(edges)),)
    topology = Topology(graph, TreeKind.SPANNING_TREE, (number.get(root, 0),), trees)
    mixing, notes = _weights(config, graph)
    weighed = _weighed(members, weights)
    overlap = bool(config.algorithm.overlap)
    return Layout(members, topology, mixing, overlap, tuple(notes), weighed)


def _graph(
    config: RunConfig, members: Sequence[str], file_graph: LabelledGraph | None
) -> tuple[Graph, list[str]]:
    wanted, n = config.topology, len(members)
    if n == 1:
        return build_graph("complete", 1), []  # a swarm of one
    try:
        if file_graph is not None:
            return _on_file(file_graph.graph, members), []
        return (
            build_graph(
                wanted.graph,
                n,
                seed=config.seed,
                degree=wanted.degree,
                probability=wanted.probability,
            ),
            [],
        )
    except GraphError as error:
        note = f"no graph {wanted.graph!r} of these {n} peers ({error.problem}): candidate graph"
        return candidate_graph(n, config.seed), [note]


def _reachable(
    graph: Graph, members: Sequence[str], dial_only: Collection[str]
) -> tuple[Graph, list[str]]:
    """The graph without edges that neither end can open, and a note where others were added."""
    kept = without_edges_among(graph, {k for k, peer in enumerate(members) if peer in dial_only})
    added = sorted({(e.u, e.v) for e in kept.edges} - {(e.u, e.v) for e in graph.edges})
    links = " ".join(f"{members[u]}-{members[v]}" for u, v in added)
    return kept, [f"links added, as some peers can only dial out: {links}"] if added else []


def _on_file(graph: Graph, members: Sequence[str]) -> Graph:
    """The file's graph on these members. With all there, the k-th peer takes the k-th node; when
    some are missing, a peer keeps the node of its own number."""
    if len(members) == graph.n:
        return graph
    numbers = [_own_number(peer) for peer in members]
    places = {k for k in numbers if k is not None and k < graph.n}
    if len(places) < len(members):
        problem = f"the file has {graph.n} nodes, and the peers' ids do not say which are theirs"
        raise GraphError("topology.file", len(members), problem, "use the ids peer-0, peer-1, ...")
    return graph.induced(places)


def _own_number(peer_id: str) -> int | None:
    digits = re.search(r"(\d+)$", peer_id)
    return int(digits[1]) if digits else None


def _weights(config: RunConfig, graph: Graph) -> tuple[Weights, list[str]]:
    chosen = config.algorithm.weights or DEFAULT_WEIGHTS.get(config.algorithm.name, "metropolis")
    name = METROPOLIS if chosen == "metropolis" else chosen
    try:
        return gossip_weights(graph, name), []
    except GraphError as error:
        note = f"no {name} weights on this graph ({error.problem}): {METROPOLIS}"
        return gossip_weights(graph, METROPOLIS), [note]


def check_graph(config: RunConfig, file_graph: LabelledGraph | None = None) -> None:
    """Raise `GraphError` if a run cannot begin on the graph that `config.topology` asks for.

    Later, when peers have come or gone, `lay_out` makes do with another graph; but a run that never
    had the graph it was given would tell of something else. Of random-regular only the name is
    checked: it stands for sparse graphs, and for odd numbers its degree is 4.
    """
    wanted, n = config.topology, config.peers
    if wanted.graph != FILE and wanted.file:
        problem = f"not used, as topology.graph is {wanted.graph!r}"
        raise GraphError("topology.file", wanted.file, problem, f"set topology.graph to {FILE!r}")
    if wanted.graph == FILE:
        _check_file(wanted.file, n, file_graph)
    elif wanted.graph != RANDOM_REGULAR and (n > 1 or wanted.graph not in GRAPH_NAMES):
        build_graph(wanted.graph, n, seed=config.seed, probability=wanted.probability)


def _check_file(file: str | None, n: int, graph: LabelledGraph | None) -> None:
    if not file:
        problem, remedy = "no file given", "set topology.file to an edge list or GraphML"
        raise GraphError("topology.file", file, problem, remedy)
    if graph is not None and graph.graph.n < n:
        problem = f"it has {graph.graph.n} nodes for {n} peers"
        raise GraphError("topology.file", file, problem, "add nodes, or lower peers")


def as_config_error(error: GraphError) -> ConfigError:
    """The same error in terms of the run config."""
    field = _SETTINGS.get(error.field, error.field)
    return ConfigError(field, error.value, error.problem, error.remedy)
