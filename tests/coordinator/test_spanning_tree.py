"""The Spanning Tree Protocol: whatever the order of delivery, the tree of least-cost paths."""

import itertools
import random
from collections.abc import Sequence

import networkx as nx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.graphs import Edge, Graph, build_graph
from coordinator.spanning_tree import (
    Bpdu,
    Bridge,
    BridgeId,
    End,
    Link,
    Outgoing,
    Role,
    SpanningTree,
    number_ports,
    read_tree,
    settle,
    spanning_tree,
    wire,
)
from tests.shapes import connected_shapes


def by_shortest_paths(
    graph: Graph, priorities: Sequence[int]
) -> tuple[int, tuple[tuple[int, int], ...]]:
    """Root and edges by the definition: Dijkstra from the best bridge, then the tie-breaks."""
    ids = [(priorities[i], i) for i in range(graph.n)]
    root = min(range(graph.n), key=ids.__getitem__)
    weighted = nx.Graph()
    weighted.add_nodes_from(range(graph.n))
    weighted.add_weighted_edges_from(graph.edges)
    distance = nx.single_source_dijkstra_path_length(weighted, root)
    edges = []
    for i in set(range(graph.n)) - {root}:
        costs = graph.costs[i]
        parent = min(costs, key=lambda k: (distance[k] + costs[k], ids[k]))
        edges.append((min(i, parent), max(i, parent)))
    return root, tuple(sorted(edges))


@st.composite
def weighted_graphs(draw: st.DrawFn, most: int = 12) -> Graph:
    """Connected, with few distinct costs, so that there are ties to break."""
    n = draw(st.integers(1, most))
    pairs = {(draw(st.integers(0, k - 1)), k) for k in range(1, n)}
    if n > 1:
        extra = st.tuples(st.integers(0, n - 1), st.integers(0, n - 1))
        more = draw(st.lists(extra, max_size=2 * n))
        pairs |= {(min(p), max(p)) for p in more if p[0] != p[1]}
    return Graph(n, tuple(Edge(u, v, draw(st.integers(1, 3))) for u, v in sorted(pairs)))


# --- the tree ------------------------------------------------------------------------------------


@given(weighted_graphs(), st.data())
def test_tree_is_that_of_shortest_paths(graph: Graph, data: st.DataObject) -> None:
    priorities = data.draw(st.lists(st.integers(0, 2), min_size=graph.n, max_size=graph.n))
    found = spanning_tree(graph, priorities)
    assert (found.root, found.edges) == by_shortest_paths(graph, priorities)


@given(weighted_graphs(), st.integers(0, 2**32))
def test_tree_does_not_depend_on_the_order_of_delivery(graph: Graph, seed: int) -> None:
    scheduled = spanning_tree(graph, schedule=random.Random(seed).choice)
    best_first = spanning_tree(graph)
    assert (scheduled.root, scheduled.edges) == (best_first.root, best_first.edges)
    assert (scheduled.root_ports, scheduled.costs) == (best_first.root_ports, best_first.costs)


@given(weighted_graphs(), st.booleans())
def test_tree_survives_the_most_lopsided_schedules(graph: Graph, newest_first: bool) -> None:
    """One link is served until nothing comes over it any more."""
    pick = (lambda ends: ends[-1]) if newest_first else min
    assert spanning_tree(graph, schedule=pick).edges == spanning_tree(graph).edges


@pytest.mark.parametrize(("name", "n"), [("torus", 36), ("social-network", 32), ("complete", 20)])
def test_named_graphs(name: str, n: int) -> None:
    graph = build_graph(name, n)
    found = spanning_tree(graph)
    assert (found.root, found.edges) == by_shortest_paths(graph, [0] * n)


def test_equal_costs_on_a_complete_graph_yield_a_star() -> None:
    assert spanning_tree(build_graph("complete", 5)).edges == ((0, 1), (0, 2), (0, 3), (0, 4))


def test_a_ring_opens_opposite_the_root() -> None:
    # 3 reaches the root over 2 and over 4 at the same cost; 2 is the better bridge id
    ring = build_graph("ring", 6)
    assert spanning_tree(ring).edges == ((0, 1), (0, 5), (1, 2), (2, 3), (4, 5))
    moved = spanning_tree(ring, priorities=[8, 8, 8, 4, 8, 8])
    assert (moved.root, moved.costs) == (3, (3, 2, 1, 0, 1, 2))
    assert moved.edges == ((0, 1), (1, 2), (2, 3), (3, 4), (4, 5))


def test_a_cheap_detour_beats_a_direct_link() -> None:
    graph = Graph(3, (Edge(0, 1, 5), Edge(0, 2, 2), Edge(1, 2, 2)))
    assert spanning_tree(graph).edges == ((0, 2), (1, 2))


def test_one_bridge_alone_is_root() -> None:
    assert spanning_tree(Graph(1, ())) == SpanningTree(0, (), (None,), (0,), 0)


@pytest.mark.parametrize(("name", "most_rounds"), [("chain", 29), ("torus", 5), ("ring", 15)])
def test_messages_in_step_settle_within_the_diameter(name: str, most_rounds: int) -> None:
    graph = build_graph(name, 30)
    in_turn = spanning_tree(graph, schedule=lambda ends: ends[0])
    assert in_turn.messages <= 2 * len(graph.edges) * (most_rounds + 1)


@pytest.mark.parametrize("name", ["chain", "ring", "torus", "complete", "binary-tree", "star"])
def test_best_first_takes_few_messages_for_each_link(name: str) -> None:
    graph = build_graph(name, 100)
    assert spanning_tree(graph).messages <= 4 * len(graph.edges)


# --- one bridge ----------------------------------------------------------------------------------

LOW, ME, HIGH = BridgeId(0, 1), BridgeId(0, 5), BridgeId(0, 9)


def test_a_fresh_bridge_announces_itself_as_root_everywhere() -> None:
    bridge = Bridge(ME, {1: 1, 2: 4})
    assert bridge.start() == [(1, Bpdu(ME, 0, ME, 1)), (2, Bpdu(ME, 0, ME, 2))]
    assert (bridge.root, bridge.cost, bridge.root_port) == (ME, 0, None)


def test_a_better_root_is_taken_and_passed_on() -> None:
    bridge = Bridge(ME, {1: 3, 2: 4})
    assert bridge.receive(1, Bpdu(LOW, 7, HIGH, 6)) == [(2, Bpdu(LOW, 10, ME, 2))]
    assert (bridge.root, bridge.cost, bridge.root_port) == (LOW, 10, 1)
    assert [bridge.role(port) for port in (1, 2)] == [Role.ROOT, Role.DESIGNATED]


def test_a_worse_root_changes_nothing() -> None:
    bridge = Bridge(ME, {1: 3})
    assert bridge.receive(1, Bpdu(HIGH, 0, HIGH, 1)) == []
    assert (bridge.root, bridge.role(1)) == (ME, Role.DESIGNATED)


# From the first field that differs on, the second port is the better one.
@pytest.mark.parametrize(
    ("first", "second", "costs"),
    [
        (Bpdu(LOW, 1, LOW, 1), Bpdu(BridgeId(0, 0), 9, HIGH, 9), (1, 9)),
        (Bpdu(LOW, 3, LOW, 1), Bpdu(LOW, 2, HIGH, 9), (1, 1)),
        (Bpdu(LOW, 2, LOW, 1), Bpdu(LOW, 3, HIGH, 9), (3, 1)),  # the receiving port's cost counts
        (Bpdu(LOW, 2, BridgeId(1, 0), 1), Bpdu(LOW, 2, HIGH, 9), (1, 1)),  # priority first
        (Bpdu(LOW, 2, HIGH, 4), Bpdu(LOW, 2, HIGH, 3), (1, 1)),
    ],
)
def test_root_port_is_chosen_field_by_field(
    first: Bpdu, second: Bpdu, costs: tuple[int, int]
) -> None:
    for order in ((1, 2), (2, 1)):
        bridge = Bridge(ME, dict(enumerate(costs, 1)))
        for port in order:
            bridge.receive(port, (first, second)[port - 1])
        assert bridge.root_port == 2


def test_a_root_that_is_taken_back_gives_way_to_the_next_best() -> None:
    bridge = Bridge(ME, {1: 1, 2: 1})
    bridge.receive(2, Bpdu(LOW, 5, HIGH, 1))
    bridge.receive(1, Bpdu(LOW, 0, LOW, 1))
    assert bridge.receive(1, Bpdu(LOW, 9, LOW, 1)) == [(1, Bpdu(LOW, 6, ME, 1))]
    assert (bridge.root, bridge.cost, bridge.root_port) == (LOW, 6, 2)
    bridge.receive(2, Bpdu(HIGH, 0, HIGH, 1))
    assert (bridge.root_port, bridge.cost) == (1, 10)
    bridge.receive(1, Bpdu(HIGH, 0, HIGH, 1))
    assert (bridge.root, bridge.root_port) == (ME, None)


def test_own_port_id_breaks_the_last_tie() -> None:
    bridge = Bridge(ME, {1: 1, 2: 1})
    for port in (2, 1):
        bridge.receive(port, Bpdu(LOW, 2, HIGH, 3))  # one segment that both ports are on
    assert bridge.root_port == 1


def test_a_port_blocks_where_the_neighbour_is_as_near_and_better() -> None:
    bridge = Bridge(ME, {1: 1, 2: 1, 3: 1})
    bridge.receive(1, Bpdu(LOW, 0, LOW, 1))
    bridge.receive(2, Bpdu(LOW, 1, BridgeId(0, 2), 2))
    bridge.receive(3, Bpdu(LOW, 1, HIGH, 2))
    assert [bridge.role(port) for port in (1, 2, 3)] == [Role.ROOT, Role.BLOCKED, Role.DESIGNATED]


def test_ports_are_numbered_by_the_neighbours_bridge_id() -> None:
    star = build_graph("star", 4)
    ids = [BridgeId(0, 0), BridgeId(5, 1), BridgeId(0, 2), BridgeId(0, 3)]
    assert number_ports(star, ids) == [
        Link(End(0, 3), End(1, 1), 1),
        Link(End(0, 1), End(2, 1), 1),
        Link(End(0, 2), End(3, 1), 1),
    ]


@pytest.mark.parametrize(("near_ports", "expected"), [((1, 2), 7), ((2, 1), 8)])
def test_given_port_ids_decide_between_parallel_links(
    near_ports: tuple[int, int], expected: int
) -> None:
    # the sender's port id comes before the own one
    links = [
        Link(End(0, near), End(1, own), 1) for near, own in zip(near_ports, (7, 8), strict=True)
    ]
    assert settle([BridgeId(0, 0), BridgeId(0, 1)], links).root_ports == (None, expected)


@given(weighted_graphs(), st.integers(0, 2**32))
def test_hellos_mend_lost_messages(graph: Graph, seed: int) -> None:
    rng = random.Random(seed)
    ids = [BridgeId(0, i) for i in range(graph.n)]
    bridges, opposite = wire(ids, number_ports(graph, ids))
    for hello in range(2 * graph.n):
        for peer, bridge in enumerate(bridges):
            for port, bpdu in bridge.start():
                end = opposite[End(peer, port)]
                if hello >= graph.n or rng.random() < 0.3:  # what a receiver answers is lost, too
                    bridges[end.peer].receive(end.port, bpdu)
    assert read_tree(bridges, opposite, 0).edges == spanning_tree(graph).edges


# --- every order of delivery ---------------------------------------------------------------------

Heard = tuple[tuple[tuple[int, Bpdu], ...], ...]  # by bridge
UnderWay = frozenset[tuple[End, tuple[Bpdu, ...]]]


class EveryOrder:
    """Follows every order in which messages can be delivered, each state once.

    Links deliver in the order of sending. A message that is worse than what its receiver announces
    on that port changes nothing whenever it comes, as announcements only improve; with `reduced`
    such a message is delivered at once, without branching. That they only improve is asserted.
    """

    def __init__(self, graph: Graph, priorities: Sequence[int], *, reduced: bool) -> None:
        ids = [BridgeId(p, i) for i, p in enumerate(priorities)]
        self.fresh, self.opposite = wire(ids, number_ports(graph, ids))
        self.reduced = reduced
        self.visited: set[tuple[Heard, UnderWay]] = set()
        self.outcomes: set[SpanningTree] = set()
        under_way: UnderWay = frozenset()
        for peer, bridge in enumerate(self.fresh):
            under_way = self.posted(under_way, peer, bridge.start())
        to_visit = [(tuple(() for _ in ids), under_way)]
        while to_visit:
            state = to_visit.pop()
            if state not in self.visited:
                self.visited.add(state)
                to_visit += self.successors(*state)

    def bridge(self, heard: Heard, peer: int) -> Bridge:
        fresh = self.fresh[peer]
        return Bridge(fresh.bridge_id, fresh.port_costs, dict(heard[peer]))

    def posted(self, under_way: UnderWay, peer: int, outgoing: Outgoing) -> UnderWay:
        queues = dict(under_way)
        for port, bpdu in outgoing:
            end = self.opposite[End(peer, port)]
            queues[end] = (*queues.get(end, ()), bpdu)
        return frozenset(queues.items())

    def successors(self, heard: Heard, under_way: UnderWay) -> list[tuple[Heard, UnderWay]]:
        if not under_way:
            bridges = [self.bridge(heard, peer) for peer in range(len(heard))]
            self.outcomes.add(read_tree(bridges, self.opposite, 0))
        following = []
        for end, queue in under_way:
            bridge = self.bridge(heard, end.peer)
            before = (bridge.root, bridge.cost)
            outgoing = bridge.receive(end.port, queue[0])
            assert (bridge.root, bridge.cost) <= before
            rest = under_way - {(end, queue)} | ({(end, queue[1:])} if queue[1:] else set())
            moved = (
                *heard[: end.peer],
                tuple(sorted(bridge.heard.items())),
                *heard[end.peer + 1 :],
            )
            state = (moved, self.posted(rest, end.peer, outgoing))
            if self.reduced and not outgoing and bridge.role(end.port) is Role.DESIGNATED:
                return [state]
            following.append(state)
        return following


SHAPES = [(n, shape) for n in (2, 3, 4) for shape in connected_shapes(n)]


def test_there_are_nine_shapes_of_two_to_four_peers() -> None:
    assert len(SHAPES) == 1 + 2 + 6


@pytest.mark.parametrize(("n", "shape"), SHAPES)
def test_every_order_of_delivery_leads_to_the_tree_of_shortest_paths(
    n: int, shape: tuple[tuple[int, int], ...]
) -> None:
    """Equal costs under all ranks (one will do where all peers are alike), and drawn costs."""
    rng = random.Random(len(shape))
    ranks = list(itertools.permutations(range(n)))
    alike = 2 * len(shape) == n * (n - 1)
    cases = [(rank, [1] * len(shape)) for rank in (ranks[:1] if alike else ranks)]
    cases += [(rng.choice(ranks), rng.choices((1, 2, 3), k=len(shape))) for _ in range(10)]
    for rank, costs in cases:
        graph = Graph(n, tuple(Edge(*pair, cost) for pair, cost in zip(shape, costs, strict=True)))
        outcomes = EveryOrder(graph, rank, reduced=True).outcomes
        expected = by_shortest_paths(graph, rank)
        assert {(tree.root, tree.edges) for tree in outcomes} == {expected}


@pytest.mark.parametrize(("n", "shape"), [s for s in SHAPES if len(s[1]) < 5])
def test_the_reduction_loses_no_outcome(n: int, shape: tuple[tuple[int, int], ...]) -> None:
    graph = Graph(n, tuple(Edge(u, v, 1 + (u + v) % 2) for u, v in shape))
    full = EveryOrder(graph, range(n), reduced=False)
    few = EveryOrder(graph, range(n), reduced=True)
    assert full.outcomes == few.outcomes
    assert len(full.visited) > len(few.visited)
