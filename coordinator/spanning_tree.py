"""The Spanning Tree Protocol, IEEE 802.1D as far as the tree is concerned.

What belongs here: the state machine of one bridge, which knows its own ports and what came in on
them, and a runner that lets the bridges of a graph talk until all is quiet. Bridges agree on the
root, the lowest bridge id; each then takes as root port the port with the least

    (root id, sender's cost + cost of the receiving port, sender's bridge id, sender's port id,
     own port id)

and forwards on the ports toward which it is *designated*: those where no neighbour announced
anything better than its own announcement. Costs are positive, so the tree has no cycle.

Timers and ageing are left out: on a change of topology the bridges start over, with a new epoch.
From a fresh start announcements only ever improve, so any order of delivery leads to one tree.

With n bridges and m links, messages that all take equally long settle within n - 1 rounds and
O(n m) messages, O(m diameter) for equal costs; a hostile order of delivery can make the number of
messages exponential in n, as for any asynchronous Bellman-Ford. With the best served first, and
what has not left yet replaced by what is newer (802.1D's hold time), O(m) are enough.
A message costs O(1) work, O(ports) if it changes root or cost, or takes back what they rest on.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

if TYPE_CHECKING:  # a bridge in a peer needs no graph library
    from coordinator.graphs import Graph

Port: TypeAlias = int


Rank: TypeAlias = int | tuple[tuple[tuple[int, int, str], ...], str]
"""The peer's number, or what it is visited by and its id: all bridges that meet have the same."""


class BridgeId(NamedTuple):
    """Rank of a bridge: the least priority is the best, the peer's rank breaks ties."""

    priority: int
    peer: Rank


class Bpdu(NamedTuple):
    """A configuration message: "I reach `root` at `cost`". The order is that of preference."""

    root: BridgeId
    cost: int
    bridge: BridgeId  # who says so
    port: Port  # the sender's, toward the receiver


Outgoing: TypeAlias = list[tuple[Port, Bpdu]]
Path: TypeAlias = tuple[BridgeId, int, BridgeId, Port, Port]
"""A way to a root as seen from one port, in the order of preference: see the top of this file."""


class Role(Enum):
    """What a port is for; the tree is made of the root ports."""

    ROOT = "root"  # toward the root
    DESIGNATED = "designated"  # away from the root: forwards
    BLOCKED = "blocked"  # another path is better


@dataclass
class Bridge:
    """One bridge: what it heard last on each port is all its state, the rest follows from that.

    `port_costs` gives each of its ports, by port id, the cost of receiving there: a positive
    integer. `start` and `receive` return what to send, as (port, message) pairs.
    """

    bridge_id: BridgeId
    port_costs: Mapping[Port, int]
    heard: dict[Port, Bpdu] = field(default_factory=dict)
    root: BridgeId = field(init=False)  # as far as this bridge knows
    cost: int = field(init=False)  # of the path to the root
    root_port: Port | None = field(init=False)  # None while it takes itself for the root
    _best: Path | None = field(init=False)  # by which it reaches a better root than itself

    def __post_init__(self) -> None:
        """Work out the root from what was heard."""
        self._choose_root()

    def start(self) -> Outgoing:
        """Announce on every designated port: on a fresh start, to every neighbour.

        Doing so again at any time is a hello: it mends what lost messages or late starts have left.
        """
        return [
            (port, self._announcement(port))
            for port in self.port_costs
            if self.role(port) is Role.DESIGNATED
        ]

    def receive(self, port: Port, bpdu: Bpdu) -> Outgoing:
        """Take in what the neighbour on `port` says; if root or cost change, announce them."""
        before = (self.root, self.cost)
        self.heard[port] = bpdu
        via = self._via(port)
        if self._best is not None and port == self.root_port and via > self._best:
            self._choose_root()  # what the choice rested on is taken back
        elif self._best is None or via < self._best:
            self._choose(via)
        return self.start() if (self.root, self.cost) != before else []

    def _choose_root(self) -> None:
        self._choose(min((self._via(port) for port in self.heard), default=None))

    def _choose(self, best: Path | None) -> None:
        """Take the best path that was heard of, unless it leads to a root worse than oneself."""
        if best is None or best[0] >= self.bridge_id:
            self._best = None
            self.root, self.cost, self.root_port = self.bridge_id, 0, None
        else:
            self._best = best
            self.root, self.cost, self.root_port = best[0], best[1], best[-1]

    def role(self, port: Port) -> Role:
        """Which role the port has now."""
        if port == self.root_port:
            return Role.ROOT
        heard = self.heard.get(port)
        better = heard is None or self._announcement(port) < heard
        return Role.DESIGNATED if better else Role.BLOCKED

    def _via(self, port: Port) -> Path:
        heard = self.heard[port]
        return (heard.root, heard.cost + self.port_costs[port], heard.bridge, heard.port, port)

    def _announcement(self, port: Port) -> Bpdu:
        return Bpdu(self.root, self.cost, self.bridge_id, port)


# --- bridges wired together ----------------------------------------------------------------------


class End(NamedTuple):
    """One end of a link: a port of a peer's bridge."""

    peer: int
    port: Port


@dataclass(frozen=True, slots=True)
class Link:
    """A link between two ports; both ends pay the same cost to receive. Links may be parallel."""

    a: End
    b: End
    cost: int


Schedule: TypeAlias = Callable[[Sequence[End]], End]
"""Picks, among the ends that have a message under way to them, the one served next."""


@dataclass(frozen=True, slots=True)
class SpanningTree:
    """What the protocol settled on. `edges` are sorted (u, v) pairs with u < v."""

    root: int
    edges: tuple[tuple[int, int], ...]
    root_ports: tuple[Port | None, ...]  # by peer; None at the root
    costs: tuple[int, ...]  # by peer, of its path to the root
    messages: int  # delivered until quiet


def spanning_tree(
    graph: Graph, priorities: Sequence[int] | None = None, schedule: Schedule | None = None
) -> SpanningTree:
    """Run the protocol on a graph. `priorities` (by peer, least is best) default to equal ones.

    The tree does not depend on `schedule`; by default the best message is served first.
    """
    ids = [BridgeId(p, i) for i, p in enumerate(priorities or [0] * graph.n)]
    return settle(ids, number_ports(graph, ids), schedule)


def number_ports(graph: Graph, ids: Sequence[BridgeId]) -> list[Link]:
    """The graph's links; ports count a bridge's links from 1 by the neighbour's bridge id."""
    ports = [
        {k: port for port, k in enumerate(sorted(graph.neighbours(i), key=ids.__getitem__), 1)}
        for i in range(graph.n)
    ]
    return [Link(End(u, ports[u][v]), End(v, ports[v][u]), cost) for u, v, cost in graph.edges]


def settle(
    ids: Sequence[BridgeId], links: Sequence[Link], schedule: Schedule | None = None
) -> SpanningTree:
    """Start a bridge for each id (peers 0.. in order) and deliver messages until none is left.

    Each direction of a link delivers in the order of sending; among links `schedule` decides.
    Without one the best message goes first, and a newer message takes the place of one that has
    not left yet.
    """
    bridges, opposite = wire(ids, links)
    line = _BestFirst() if schedule is None else _Scheduled(schedule)

    def post(peer: int, outgoing: Outgoing) -> None:
        for port, bpdu in outgoing:
            line.put(opposite[End(peer, port)], bpdu)

    for peer, bridge in enumerate(bridges):
        post(peer, bridge.start())
    messages = 0
    while (following := line.take()) is not None:
        end, bpdu = following
        post(end.peer, bridges[end.peer].receive(end.port, bpdu))
        messages += 1
    return read_tree(bridges, opposite, messages)


class _Scheduled:
    """Messages under way, each of which arrives, in the order that a schedule wants."""

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule
        self._queues: dict[End, deque[Bpdu]] = {}

    def put(self, end: End, bpdu: Bpdu) -> None:
        self._queues.setdefault(end, deque()).append(bpdu)

    def take(self) -> tuple[End, Bpdu] | None:
        if not self._queues:
            return None
        end = self._schedule(tuple(self._queues))
        queue = self._queues.pop(end)
        bpdu = queue.popleft()
        if queue:
            self._queues[end] = queue  # to the back of the line
        return end, bpdu


class _BestFirst:
    """Messages under way, the newest to each end only, the best first."""

    def __init__(self) -> None:
        self._newest: dict[End, Bpdu] = {}
        self._heap: list[tuple[Bpdu, End]] = []  # those replaced stay, and are passed over

    def put(self, end: End, bpdu: Bpdu) -> None:
        self._newest[end] = bpdu
        heapq.heappush(self._heap, (bpdu, end))

    def take(self) -> tuple[End, Bpdu] | None:
        while self._heap:
            bpdu, end = heapq.heappop(self._heap)
            if self._newest.get(end) is bpdu:
                del self._newest[end]
                return end, bpdu
        return None


def wire(ids: Sequence[BridgeId], links: Sequence[Link]) -> tuple[list[Bridge], dict[End, End]]:
    """A fresh bridge for each id, and for each end of a link the end opposite."""
    opposite: dict[End, End] = {}
    port_costs: list[dict[Port, int]] = [{} for _ in ids]
    for link in links:
        opposite |= {link.a: link.b, link.b: link.a}
        port_costs[link.a.peer][link.a.port] = port_costs[link.b.peer][link.b.port] = link.cost
    return [Bridge(i, costs) for i, costs in zip(ids, port_costs, strict=True)], opposite


def read_tree(
    bridges: Sequence[Bridge], opposite: Mapping[End, End], messages: int
) -> SpanningTree:
    """The tree that quiet bridges agree on."""
    edges, root = [], 0
    for peer, bridge in enumerate(bridges):
        port = bridge.root_port
        if port is None:
            root = peer
        else:
            other = opposite[End(peer, port)].peer
            edges.append((min(peer, other), max(peer, other)))
    return SpanningTree(
        root=root,
        edges=tuple(sorted(edges)),
        root_ports=tuple(bridge.root_port for bridge in bridges),
        costs=tuple(bridge.cost for bridge in bridges),
        messages=messages,
    )
