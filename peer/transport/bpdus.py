"""Hellos of bridges <-> protobuf, and how they get to neighbours.

What belongs here: that what comes in is held against what a hello may say, and that saying one
never waits.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import grpc

from coordinator.spanning_tree import Bpdu
from peer.hellos import (
    MAX_MEMBERS,
    Age,
    Commit,
    Hello,
    Node,
    Seat,
    bridge_id,
    in_order,
    is_tree,
    peer_of,
)
from peer.transport.channel import open_channel
from peer.transport.topology_watch import ID
from peer.transport.wire import SERVICE, MalformedError
from relayswarm.config import A_WEIGHT, LARGEST_WEIGHT, LEAST_WEIGHT
from relayswarm.errors import ConfigError
from relayswarm.net.address import split_address
from relayswarm.net.security import Security
from relayswarm.peer.v1 import peer_pb2 as pb

MAX_AGE = 2**62
"""Terms, numbers and steps at or above this are nonsense, and would overflow the wire."""
MAX_LINKS = 8 * MAX_MEMBERS
MAX_UNDER_WAY = 8
"""Hellos to one peer that nobody has answered; no more are sent to it then."""


# --- out ------------------------------------------------------------------------------------------


def request_of(hello: Hello, run_id: str) -> pb.SendBpduRequest:
    """What a hello looks like on the wire."""
    incarnation, beat = hello.root_beat
    return pb.SendBpduRequest(
        run_id=run_id,
        sender=_seat_message(hello.seat),
        beat=hello.beat,
        bpdu=pb.Bpdu(
            root=peer_of(hello.bpdu.root),
            cost=hello.bpdu.cost,
            port=hello.bpdu.port,
            root_incarnation=incarnation,
            root_beat=beat,
        ),
        parent=hello.parent,
        hears=hello.hears,
        largest=_age_message(hello.largest),
        held=_age_message(hello.held),
        step=hello.step,
        steps_per_s=hello.rate,
        report=[_node_message(node) for node in hello.report or ()],
        tree=tree_message(hello.commit) if hello.commit else None,
    )


def tree_message(commit: Commit) -> pb.CommittedTree:
    """What a committed tree looks like on the wire."""
    place = {seat.peer: k for k, seat in enumerate(commit.members)}

    def pairs(edges: Iterable[tuple[str, str]]) -> list[pb.MemberPair]:
        return [pb.MemberPair(a=place[a], b=place[b]) for a, b in edges]

    return pb.CommittedTree(
        epoch=_age_message(commit.age),
        root=commit.root,
        members=[_seat_message(seat) for seat in commit.members],
        edges=pairs(commit.tree),
        links=pairs(commit.links),
        step=commit.step,
        effective_step=commit.effective_step,
    )


def _seat_message(seat: Seat) -> pb.Seat:
    weight = None if seat.weight == 1 else seat.weight
    return pb.Seat(
        peer_id=seat.peer, incarnation=seat.incarnation, address=seat.address, weight=weight
    )


def _age_message(age: Age) -> pb.Epoch:
    return pb.Epoch(term=age[0], number=age[1])


def _node_message(node: Node) -> pb.ReportedPeer:
    return pb.ReportedPeer(
        seat=_seat_message(node.seat),
        parent=node.parent,
        links=node.links,
        held=_age_message(node.held),
        intact=node.intact,
    )


# --- in -------------------------------------------------------------------------------------------


def parse_hello(request: pb.SendBpduRequest) -> Hello:
    """What a neighbour says. Raises MalformedError for what no bridge can say."""
    bpdu, rate = request.bpdu, request.steps_per_s
    if not (math.isfinite(rate) and rate >= 0):
        raise MalformedError(f"steps_per_s = {rate}: not a rate; send 0 or more")
    seat = _seat(request.sender)
    report = _report(request.report, seat)
    return Hello(
        seat=seat,
        beat=_small(request.beat, "beat"),
        bpdu=Bpdu(bridge_id(_id(bpdu.root, "root")), bpdu.cost, bridge_id(seat.peer), bpdu.port),
        root_beat=(bpdu.root_incarnation, bpdu.root_beat),
        parent=_id(request.parent, "parent") if request.parent else "",
        hears=request.hears,
        largest=_age(request.largest),
        held=_age(request.held),
        step=_small(request.step, "step"),
        rate=rate,
        report=report,
        commit=parse_tree(request.tree) if request.HasField("tree") else None,
    )


def parse_tree(message: pb.CommittedTree) -> Commit:
    """A committed tree. Raises MalformedError if it is none."""
    _few(message.members, "members")
    members = tuple(_seat(seat) for seat in message.members)
    peers = [seat.peer for seat in members]
    if message.root not in peers or len(set(peers)) < len(peers):
        raise MalformedError("members: some twice, or without the root; name each once")
    _few(message.links, "links", MAX_LINKS)
    tree = _edges(message.edges, peers)
    if not is_tree(peers, tree):
        raise MalformedError("edges: not a tree of the members; send one")
    return Commit(
        age=_age(message.epoch),
        root=message.root,
        members=tuple(sorted(members, key=lambda seat: bridge_id(seat.peer))),
        tree=tree,
        links=in_order([*_edges(message.links, peers), *tree]),
        step=_small(message.step, "step"),
        effective_step=_small(message.effective_step, "effective_step"),
    )


def _report(nodes: Sequence[pb.ReportedPeer], sender: Seat) -> tuple[Node, ...] | None:
    if not nodes:
        return None
    _few(nodes, "report")
    _few([link for node in nodes for link in node.links], "links", MAX_LINKS)
    report = tuple(_node(node) for node in nodes)
    if report[0].seat != sender:
        raise MalformedError("report: not the sender's own in front; send it first")
    return report


def _node(message: pb.ReportedPeer) -> Node:
    if message.seat.peer_id in (message.parent, *message.links):
        raise MalformedError("report: a peer is linked to itself; name others only")
    return Node(
        seat=_seat(message.seat),
        parent=_id(message.parent, "parent") if message.parent else "",
        links=tuple(_id(link, "links") for link in message.links),
        held=_age(message.held),
        intact=message.intact,
    )


def _edges(pairs: Iterable[pb.MemberPair], peers: Sequence[str]) -> tuple[tuple[str, str], ...]:
    for pair in pairs:
        if pair.a == pair.b or max(pair.a, pair.b) >= len(peers):
            raise MalformedError(f"pair {pair.a}, {pair.b}: not two of the {len(peers)} members")
    return in_order((peers[pair.a], peers[pair.b]) for pair in pairs)


def _seat(message: pb.Seat) -> Seat:
    try:
        split_address(message.address, "address")
    except ConfigError as error:
        raise MalformedError(str(error)) from error
    if not message.incarnation:
        raise MalformedError("incarnation = 0: no life; send that of the peer")
    weight = message.weight if message.HasField("weight") else 1.0
    if not (weight == 0 or LEAST_WEIGHT <= weight <= LARGEST_WEIGHT):
        raise MalformedError(f"weight = {weight}: not a weight; send {A_WEIGHT}")
    return Seat(_id(message.peer_id, "peer_id"), message.incarnation, message.address, weight)


def _id(text: str, field: str) -> str:
    if not ID.fullmatch(text):
        raise MalformedError(f"{field} = {text[:64]!r}: no id of a peer; send one")
    return text


def _age(epoch: pb.Epoch) -> Age:
    return (_small(epoch.term, "term"), _small(epoch.number, "number"))


def _small(number: int, field: str) -> int:
    if number >= MAX_AGE:
        raise MalformedError(f"{field} = {number}: too large; send less than 2^62")
    return number


def _few(items: Sequence[object], field: str, most: int = MAX_MEMBERS) -> None:
    if len(items) > most:
        raise MalformedError(f"{field}: {len(items)} are too many; send {most} at most")


# --- to neighbours --------------------------------------------------------------------------------


_Call: TypeAlias = "grpc.UnaryUnaryMultiCallable[pb.SendBpduRequest, pb.SendBpduResponse]"


@dataclass
class _Line:
    """A connection to a peer's address, and how many hellos are on their way there."""

    address: str
    channel: grpc.Channel
    call: _Call
    under_way: int = 0


class Greeter:
    """Says hellos and does not wait for answers. For one thread; what is lost is lost."""

    def __init__(self, run_id: str, security: Security, timeout_s: float) -> None:
        """After `timeout_s` without an answer a hello is given up."""
        self._run_id, self._security, self._timeout_s = run_id, security, timeout_s
        self._lines: dict[str, _Line] = {}
        self._guard = threading.Lock()

    def say(self, to: Seat, hello: Hello) -> None:
        """Greet a peer at its address."""
        line = self._line(to)
        with self._guard:
            if line.under_way >= MAX_UNDER_WAY:
                return
            line.under_way += 1
        call = line.call.future(request_of(hello, self._run_id), timeout=self._timeout_s)
        call.add_done_callback(lambda _: self._answered(line))

    def close(self) -> None:
        """Cut off what is under way."""
        for line in self._lines.values():
            line.channel.close()

    def _answered(self, line: _Line) -> None:
        with self._guard:
            line.under_way -= 1

    def _line(self, to: Seat) -> _Line:
        known = self._lines.get(to.peer)
        if known and known.address == to.address:
            return known
        if known:
            known.channel.close()
        channel = open_channel(to.address, self._security, to.peer)
        call: _Call = channel.unary_unary(
            f"/{SERVICE}/SendBpdu",
            pb.SendBpduRequest.SerializeToString,
            pb.SendBpduResponse.FromString,
        )
        line = self._lines[to.peer] = _Line(to.address, channel, call)
        return line
