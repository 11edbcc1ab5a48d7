"""A virtual clock and an in-memory network that drive the same objects as the daemons do.

Nothing here knows torch or files: vectors, training and the network's behaviour come in from
outside, so a paper's identity can be run over `Fraction` with `==`, and a learning run over torch.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol, TypeAlias

from peer.algorithms.core import (
    Algorithm,
    Averaged,
    Drop,
    Event,
    Finished,
    Gone,
    Head,
    Kind,
    Message,
    NewView,
    PeerId,
    Received,
    SendDone,
    Tick,
    Train,
    Trained,
    Verdict,
    View,
)
from peer.driver import Driver, Vectors

RETRY_S = 0.01  # after EPOCH_AHEAD, as the transport does


@dataclass(frozen=True)
class Delivery:
    """One arrival of a message: after so long, whole or as an announced loss."""

    delay_s: float
    lost: bool = False


class Link(Protocol):
    """The network's behaviour: when copies of a message arrive. Empty: lost without a word."""

    def __call__(self, sender: PeerId, to: PeerId, head: Head) -> Sequence[Delivery]: ...


def perfect_link(sender: PeerId, to: PeerId, head: Head) -> Sequence[Delivery]:  # noqa: ARG001
    """Everything arrives once, after a millisecond."""
    return (Delivery(0.001),)


Reachable: TypeAlias = Callable[[PeerId, PeerId], bool]
"""Whether the first peer can connect to the second now."""


def always(sender: PeerId, to: PeerId) -> bool:  # noqa: ARG001
    """Everyone can reach everyone."""
    return True


class Traffic(Protocol):
    """Hears of each message that is sent, unless it gets lost without a word, of each that a
    receiver takes, and of each that has to go again. Announced losses come without payload."""

    def sent(self, sender: PeerId, to: PeerId, payload: tuple[Any, ...]) -> None: ...
    def received(self, sender: PeerId, to: PeerId, payload: tuple[Any, ...]) -> None: ...
    def retried(self, sender: PeerId) -> None: ...


class Wire(Protocol):
    """What becomes of a message's content on its way, beyond what `Body.payload` makes of it."""

    def __call__(
        self, sender: PeerId, to: PeerId, head: Head, payload: tuple[Any, ...]
    ) -> tuple[Any, ...]: ...


class Body(Protocol):
    """What a simulated peer computes with."""

    @property
    def vectors(self) -> Vectors: ...

    def train(self, effect: Train) -> Trained:
        """Take the local steps."""

    def duration_s(self, effect: Train) -> float:
        """Virtual seconds that those local steps take."""

    def letter(self, head: Head, outgoing: Any) -> tuple[Head, tuple[Any, ...]]:
        """What the receiver gets: header, and a payload for each section as the wire leaves it."""


class _Flight(NamedTuple):
    """A message under way; `hops` is the length of the chain of messages that it ends."""

    sender: PeerId
    to: PeerId
    head: Head
    payload: tuple[Any, ...]
    lost: bool
    hops: int


@dataclass
class Node:
    """One simulated peer, and the host of its driver.

    `down` are the neighbours that it failed to reach at the last attempt. A node that is not
    `alive` takes nothing in any more, and nothing comes out of it. `depth` is the number of
    messages on the longest chain that it had to wait for: each sent upon the one before, or upon
    the end of a training that the one before made possible. One that comes while its receiver
    trains holds nobody up, and does not count.
    """

    peer: PeerId
    world: World
    body: Body
    driver: Driver = field(init=False)
    history: list[Averaged] = field(default_factory=list)
    drops: list[Drop] = field(default_factory=list)
    finished_at: float | None = None
    alive: bool = True
    down: set[PeerId] = field(default_factory=set)
    depth: int = 0
    on_event: Callable[[Event], None] | None = None  # before the algorithm hears of it
    on_averaged: Callable[[Averaged], None] | None = None
    on_observed: Callable[[str, float], None] | None = None
    on_train: Callable[[Train], None] | None = None
    _alarm_at: float | None = None
    _training: bool = False
    _cause: int = 0  # depth of the message being taken in

    @property
    def algorithm(self) -> Algorithm:
        return self.driver.algorithm

    def feed(self, event: Event) -> None:
        if not self.alive:
            return
        if self.on_event:
            self.on_event(event)
        self.driver.feed(event, self.world.now)
        if self.world.follows_swarm:
            self.world.count_steps(self)
        self._set_alarm()

    def take(self, flight: _Flight) -> None:
        """A message, or the announcement of its loss, is in."""
        self.reached(flight.hops)
        self._cause = flight.hops
        head = flight.head
        self.feed(Gone(flight.sender, head) if flight.lost else _received(head, flight.payload))
        self._cause = 0

    def reached(self, hops: int) -> None:
        """The end of a chain of so many messages is here."""
        if not self._training:
            self.depth = max(self.depth, hops)

    @property
    def hop(self) -> int:
        """How long a chain of messages will be whose last is sent now."""
        return 1 + (self._cause if self._training else self.depth)

    def _set_alarm(self) -> None:
        """Be woken at the algorithm's deadline, or before, to set the alarm again: deadlines are
        put off with every step and nearly never come."""
        deadline = self.driver.algorithm.next_deadline()
        if deadline is not None and (self._alarm_at is None or deadline < self._alarm_at):
            self._alarm_at = deadline
            self.world.at(deadline, lambda: self._wake(deadline))

    def _wake(self, alarm: float) -> None:
        if alarm != self._alarm_at:
            return  # an earlier one took its place
        self._alarm_at = None
        deadline = self.algorithm.next_deadline()
        if deadline is not None and deadline <= self.world.now:
            self.feed(Tick())
        elif self.alive:
            self._set_alarm()

    # --- Host --------------------------------------------------------------------------------

    def train(self, effect: Train) -> None:
        def done() -> None:
            if self.alive:
                self._training = False
                self.feed(self.body.train(effect))

        self._training = True
        if self.world.follows_swarm:
            self.world.count_steps(self)
            effect = replace(effect, at=self.world.progress())
        if self.on_train:
            self.on_train(effect)
        self.world.at(self.world.now + self.body.duration_s(effect), done)

    def send(self, to: PeerId, head: Head, outgoing: Any) -> None:
        if not self.alive:
            return
        self.world.transmit(self.peer, to, *self.body.letter(head, outgoing))

    def cancel(self, to: PeerId, head: Head) -> None:
        self.world.cancel(to, head)

    def averaged(self, effect: Averaged) -> None:
        self.history.append(effect)
        if self.on_averaged:
            self.on_averaged(effect)

    def dropped(self, effect: Drop) -> None:
        self.drops.append(effect)

    def wants(self, metric: str) -> bool:  # noqa: ARG002
        return self.on_observed is not None

    def observed(self, metric: str, value: float) -> None:
        assert self.on_observed
        self.on_observed(metric, value)

    def finished(self, effect: Finished) -> None:  # noqa: ARG002
        self.finished_at = self.world.now


class World:
    """All peers of a simulated swarm, the clock and the network between them.

    Messages of one kind and tree between two peers arrive in the order in which they were sent, as
    the transport sees to; with `ordered = False` they may overtake each other, with
    `cancels = False` a message that was cancelled arrives all the same. A message to a peer that
    cannot be reached is lost, and its sender told that the peer is unreachable. `wire` carries what
    a receiver takes, when it arrives. `follows_swarm` says whether rates do (see `peer.pace`), so
    that the peers' progress is counted. What a peer has sent that finished `linger_s` ago, and the
    receiver does not want yet, is given up.
    """

    def __init__(
        self,
        link: Link = perfect_link,
        *,
        cancels: bool = True,
        ordered: bool = True,
        reachable: Reachable = always,
        traffic: Traffic | None = None,
        wire: Wire | None = None,
        follows_swarm: bool = False,
        linger_s: float = math.inf,
    ) -> None:
        self.now = 0.0
        self._linger_s = linger_s
        self.follows_swarm = follows_swarm
        self.nodes: dict[PeerId, Node] = {}
        self._steps: dict[PeerId, int] = {}  # of each peer that lives
        self._steps_in_all = 0
        self._link = link
        self._reachable = reachable
        self._traffic = traffic
        self._wire = wire
        self._cancels = cancels
        self._ordered = ordered
        self._last_arrival: dict[tuple[PeerId, PeerId, Kind, int], float] = {}
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._cancelled: set[tuple[PeerId, Head]] = set()

    def add(self, peer: PeerId, algorithm: Algorithm, body: Body) -> Node:
        node = Node(peer, self, body)
        node.driver = Driver(algorithm, body.vectors, node)
        self.nodes[peer] = node
        self._steps_in_all -= self._steps.pop(peer, 0)
        self._steps[peer] = 0
        self.count_steps(node)
        return node

    def publish(self, views: Iterable[View]) -> None:
        """Give each member its view now."""
        for view in views:
            self.nodes[view.me].feed(NewView(view))

    def at(self, time: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._agenda, (time, next(self._numbers), action))

    def run(self, until: Callable[[], bool] | None = None) -> None:
        """Go through the agenda until it is empty or `until` says so."""
        while self._agenda and not (until and until()):
            self.now, _, action = heapq.heappop(self._agenda)
            action()

    def progress(self) -> int:
        """How many steps the peers that live have done, in the mean."""
        return self._steps_in_all // len(self._steps)

    def count_steps(self, node: Node) -> None:
        """Take note of how far a peer is: `progress` is asked for whenever one begins to train, too
        often to add up all peers' steps."""
        if node.alive:
            step = node.algorithm.step
            self._steps_in_all += step - self._steps[node.peer]
            self._steps[node.peer] = step

    def all_finished(self) -> bool:
        return all(node.finished_at is not None for node in self.nodes.values())

    def crash(self, peer: PeerId) -> None:
        """The peer dies; `add` brings it back as a new one. What it had sent still arrives."""
        self.nodes[peer].alive = False
        self._steps_in_all -= self._steps.pop(peer, 0)

    # --- network -----------------------------------------------------------------------------

    def transmit(self, sender: PeerId, to: PeerId, head: Head, payload: tuple[Any, ...]) -> None:
        if not self.connected(sender, to):
            self.at(self.now, lambda: self._unreachable(sender, to, head))
            return
        deliveries = self._link(sender, to, head)
        if not deliveries:
            self.at(self.now, lambda: self.nodes[sender].feed(SendDone(to, head, None)))
        for delivery in deliveries:
            if self._traffic:
                self._traffic.sent(sender, to, () if delivery.lost else payload)
            arrival = self._in_turn(self.now + delivery.delay_s, sender, to, head)
            lost = delivery.lost or head.lost
            hops = self.nodes[sender].hop
            self._arrive_at(arrival, _Flight(sender, to, head, payload, lost, hops))

    def connected(self, sender: PeerId, to: PeerId) -> bool:
        """Whether a message from one peer can get to another now."""
        return self.nodes[to].alive and self._reachable(sender, to)

    def _unreachable(self, sender: PeerId, to: PeerId, head: Head) -> None:
        node = self.nodes[sender]
        node.down.add(to)
        node.feed(Gone(to))
        node.feed(SendDone(to, head, None))

    def _in_turn(self, arrival: float, sender: PeerId, to: PeerId, head: Head) -> float:
        if self._ordered:
            line = (sender, to, head.kind, head.tree)
            arrival = max(arrival, self._last_arrival.get(line, 0.0))
            self._last_arrival[line] = arrival
        return arrival

    def cancel(self, to: PeerId, head: Head) -> None:
        if self._cancels:
            self._cancelled.add((to, head))

    def _carried(self, flight: _Flight) -> _Flight:
        if self._wire is None or flight.lost:
            return flight
        sender, to, head = flight.sender, flight.to, flight.head
        return flight._replace(payload=self._wire(sender, to, head, flight.payload))

    def _arrive_at(self, time: float, flight: _Flight) -> None:
        self.at(time, lambda: self._arrive(flight))

    def _arrive(self, flight: _Flight) -> None:
        sender, to, head = flight.sender, flight.to, flight.head
        if self._cancelled and (to, head) in self._cancelled:
            return
        if not self.connected(sender, to):
            self._unreachable(sender, to, head)
            return
        node, back = self.nodes[to], self.nodes[sender]
        back.down.discard(to)
        asked = replace(head, lost=True) if flight.lost else head
        verdict: Verdict | None = node.algorithm.admit(asked)
        if verdict is Verdict.EPOCH_AHEAD:
            if not self._has_left(back):
                if self._traffic:
                    self._traffic.retried(sender)
                self._arrive_at(self.now + RETRY_S, flight)
                return
            verdict = None
        if verdict is Verdict.ACCEPTED:
            if self._traffic and not flight.lost:
                self._traffic.received(sender, to, flight.payload)
            node.take(self._carried(flight))
        elif verdict is Verdict.BUSY:
            back.reached(flight.hops + 1)
        back.feed(SendDone(to, head, verdict))

    def _has_left(self, node: Node) -> bool:
        return node.finished_at is not None and self.now > node.finished_at + self._linger_s


def _received(head: Head, payload: tuple[Any, ...]) -> Received:
    vectors = tuple(Message(head, section, vector) for section, vector in enumerate(payload))
    return Received(head, vectors)
