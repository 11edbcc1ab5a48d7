"""Hellos of bridges over real gRPC: the same when they arrive, and nothing else is taken."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.spanning_tree import Bpdu
from peer.hellos import (
    Commit,
    Hello,
    Node,
    Seat,
    bridge_id,
)
from peer.transport.bpdus import MAX_AGE, MAX_UNDER_WAY, Greeter, parse_hello, request_of
from peer.transport.wire import MalformedError
from relayswarm.net.gate import Denial
from relayswarm.net.security import PLAIN
from relayswarm.peer.v1 import peer_pb2 as pb

IDS = st.integers(0, 12).map(lambda k: f"peer-{k}")
NUMBERS = st.integers(0, MAX_AGE - 1)
AGES = st.tuples(NUMBERS, NUMBERS)
SEATS = st.builds(Seat, IDS, st.integers(1, 2**64 - 1), st.just("127.0.0.1:7000"))
OTHERS = st.integers(20, 32).map(lambda k: f"peer-{k}")
LINKS = st.lists(OTHERS, max_size=3).map(tuple)
NODES = st.builds(Node, SEATS, OTHERS, LINKS, AGES, st.booleans())


@st.composite
def commits(draw: Callable[..., Any]) -> Commit:
    n = draw(st.integers(1, 6))
    peers = [f"peer-{k}" for k in range(n)]
    tree = [(peers[draw(st.integers(0, k - 1))], peers[k]) for k in range(1, n)]
    members = tuple(Seat(p, draw(st.integers(1, 9)), "[::1]:80") for p in peers)
    edges = tuple(sorted(tree, key=lambda e: (bridge_id(e[0]), bridge_id(e[1]))))
    root = draw(st.sampled_from(peers))
    return Commit(draw(AGES), root, members, edges, edges, draw(NUMBERS), draw(NUMBERS))


@st.composite
def hellos(draw: Callable[..., Any]) -> Hello:
    seat = draw(SEATS)
    below = draw(st.lists(NODES, max_size=3))
    own = replace(draw(NODES), seat=seat)
    root = bridge_id(draw(IDS))
    small = st.integers(0, 2**31)
    return Hello(
        seat=seat,
        beat=draw(NUMBERS),
        bpdu=Bpdu(root, draw(small), bridge_id(seat.peer), draw(small)),
        root_beat=(draw(st.integers(0, 2**64 - 1)), draw(NUMBERS)),
        parent=draw(st.one_of(st.just(""), IDS)),
        hears=draw(st.booleans()),
        largest=draw(AGES),
        held=draw(AGES),
        step=draw(NUMBERS),
        rate=draw(st.floats(0, 1e9)),
        report=draw(st.sampled_from([None, (own, *below)])),
        commit=draw(st.one_of(st.none(), commits())),
    )


@given(hellos())
def test_a_hello_is_the_same_when_it_arrives(hello: Hello) -> None:
    wire = request_of(hello, "run").SerializeToString()
    assert parse_hello(pb.SendBpduRequest.FromString(wire)) == hello


def example() -> Hello:
    """Of a peer with a child, which it passes a tree on to."""
    seats = tuple(Seat(f"peer-{k}", 7, f"127.0.0.1:{k + 1}") for k in range(3))
    tree = (("peer-0", "peer-1"), ("peer-1", "peer-2"))
    nodes = tuple(
        Node(seat, parent, (), (8, 2**16), True)
        for seat, parent in ((seats[1], "peer-0"), (seats[2], "peer-1"))
    )
    return Hello(
        seat=seats[1],
        beat=4,
        bpdu=Bpdu(bridge_id("peer-0"), 1, bridge_id("peer-1"), 2),
        root_beat=(7, 9),
        parent="peer-0",
        hears=True,
        largest=(8, 2**16),
        held=(8, 2**16),
        step=40,
        rate=2.5,
        report=nodes,
        commit=Commit((8, 2**16), "peer-0", seats, tree, tree, 40, 44),
    )


def broken(change: Callable[[pb.SendBpduRequest], object]) -> pb.SendBpduRequest:
    request = request_of(example(), "run")
    change(request)
    return request


BROKEN: dict[str, Callable[[pb.SendBpduRequest], object]] = {
    "sender without an id": lambda r: r.sender.ClearField("peer_id"),
    "sender without a life": lambda r: r.sender.ClearField("incarnation"),
    "sender without an address": lambda r: r.sender.ClearField("address"),
    "a root that is no id": lambda r: setattr(r.bpdu, "root", "no peer"),
    "no root": lambda r: r.ClearField("bpdu"),
    "a parent that is no id": lambda r: setattr(r, "parent", "../.."),
    "a huge term": lambda r: setattr(r.largest, "term", MAX_AGE),
    "a huge number": lambda r: setattr(r.held, "number", 2**64 - 1),
    "a huge step": lambda r: setattr(r, "step", MAX_AGE),
    "a huge beat": lambda r: setattr(r, "beat", MAX_AGE),
    "a rate that is none": lambda r: setattr(r, "steps_per_s", float("nan")),
    "an endless rate": lambda r: setattr(r, "steps_per_s", float("inf")),
    "a rate below zero": lambda r: setattr(r, "steps_per_s", -1.0),
    "somebody else's report": lambda r: r.report.pop(0),
    "too long a report": lambda r: r.report.extend([r.report[1]] * 1024),
    "a link to nobody": lambda r: r.report[1].links.append(""),
    "a link to itself": lambda r: r.report[1].links.append("peer-2"),
    "its own parent": lambda r: setattr(r.report[1], "parent", "peer-2"),
    "too many links": lambda r: r.report[1].links.extend(["peer-1"] * 8193),
    "a member twice": lambda r: r.tree.members.append(r.tree.members[0]),
    "too many members": lambda r: r.tree.members.extend([r.tree.members[0]] * 1024),
    "no members": lambda r: r.tree.ClearField("members"),
    "a root that is no member": lambda r: setattr(r.tree, "root", "peer-9"),
    "an edge too few": lambda r: r.tree.edges.pop(),
    "an edge too many": lambda r: r.tree.edges.append(pb.MemberPair(a=0, b=2)),
    "a loop": lambda r: r.tree.edges[0].CopyFrom(pb.MemberPair(a=1, b=1)),
    "an edge to nobody": lambda r: r.tree.edges[0].CopyFrom(pb.MemberPair(a=1, b=3)),
    "too many pairs": lambda r: r.tree.links.extend([pb.MemberPair(a=0, b=1)] * 10_000),
    "a huge effective step": lambda r: setattr(r.tree, "effective_step", MAX_AGE),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_no_bridge_can_say_is_refused(what: str) -> None:
    parse_hello(broken(lambda _: None))
    with pytest.raises(MalformedError):
        parse_hello(broken(BROKEN[what]))


def code_of(call: Callable[[], object]) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code()


def test_a_server_hands_hellos_on_and_refuses_all_else(tools: Any) -> None:
    handler = tools.Handler()
    stub = tools.stub(tools.server(handler, tools.contract()).address)
    stub.SendBpdu(request_of(example(), "run"))
    assert handler.of("greeted") == [(example(),)]
    malformed = broken(BROKEN["a loop"])
    assert code_of(lambda: stub.SendBpdu(malformed)) is grpc.StatusCode.INVALID_ARGUMENT
    foreign = request_of(example(), "another")
    assert code_of(lambda: stub.SendBpdu(foreign)) is grpc.StatusCode.FAILED_PRECONDITION
    handler.heals = False
    ours = request_of(example(), "run")
    assert code_of(lambda: stub.SendBpdu(ours)) is grpc.StatusCode.FAILED_PRECONDITION
    assert [denial for denial, _ in handler.of("denied")] == [
        Denial.MALFORMED,
        Denial.RUN,
        Denial.RUN,
    ]


@pytest.fixture
def greeter() -> Iterator[Greeter]:
    with contextlib.closing(Greeter("run", PLAIN, timeout_s=20.0)) as greeter:
        yield greeter


def test_a_greeter_greets_also_at_a_new_address(tools: Any, greeter: Greeter) -> None:
    for life in (1, 2):
        handler = tools.Handler()
        address = tools.server(handler, tools.contract()).address
        greeter.say(Seat("peer-0", life, address), example())
        assert handler.wait("greeted") == [(example(),)]


def test_a_greeter_does_not_pile_up_what_nobody_answers(tools: Any, greeter: Greeter) -> None:
    class Hanging(tools.Handler):  # type: ignore[misc]
        def greeted(self, hello: Hello) -> bool:
            self.add("greeted", hello)
            with self.changed:
                return bool(self.changed.wait_for(lambda: self.of("free"), 20.0))

    handler = Hanging()
    seat = Seat("peer-0", 1, tools.server(handler, tools.contract()).address)
    for _ in range(3 * MAX_UNDER_WAY):
        greeter.say(seat, example())
    handler.wait("greeted", MAX_UNDER_WAY)
    handler.add("free")
    greeter.close()
    assert len(handler.of("greeted")) == MAX_UNDER_WAY
