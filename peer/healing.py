"""Repairs the tree without a coordinator: IEEE 802.1D's bridges with timers, and a commit on top.

    handle(event, now) -> effects            next_deadline() -> when to be woken with a Tick

Pure: nothing here reads a clock, waits or sends. While a coordinator leads, a healer is silent.
Without one, peers say `Hello` to each other every `hello_s`, and sooner when there is news:

- **Bridges.** A hello carries a BPDU, which `spanning_tree.Bridge` judges. A neighbour that has not
  been heard of for `max_age_s` is forgotten. A root counts its hellos, and all who announce it say
  how far its count was: a root whose count has not risen for `max_age_s` is forgotten, too, so that
  what dead roots once said does not go round (802.1D lets messages age for the same end).
- **Reports.** No peer can see that the protocol is quiet. So a peer whose root, parent, children
  and live links have stood for `max_age_s`, whose live neighbours all name the same root, and
  whose children have all reported, reports its whole subtree to its parent.
- **Commits.** The root, once it could report everybody, commits (term, number, root, members, tree)
  unless the tree that all of them hold still stands. The commit goes down the tree, from parents
  to children, and only what is committed is ever taken up. All others keep the view that they have.
- **Probes.** A root that could report everybody says hello to the known peers outside its tree, a
  few at a time, and first of all before it commits: so parts of a swarm that have no link left find
  each other, also after a partition.

Never do two trees have the same (term, number), whatever is lost, late or dead, with any clocks: a
root numbers its commits with numbers that no other root has (`tag`), each but once. Timers decide
only how soon a good tree stands. The largest (term, number) that anybody knows travels with all
hellos. A root whose last commit is the largest goes on counting among those that hold trees of its
own, else it founds the largest term plus one: so does the lower root, which wins, after a
partition. Numbers of a coordinator are below those of roots.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeAlias

from coordinator.members import FIRST_HEALED_NUMBER, LEAP
from coordinator.spanning_tree import Bpdu, Bridge, BridgeId, Port
from peer.hellos import (
    MAX_MEMBERS,
    Age,
    Commit,
    Hello,
    Node,
    Report,
    Seat,
    bridge_id,
    in_order,
    peer_of,
)

MAX_TAG = 2**36
PROBES, FIRST_PROBES = 3, 16
"""How many strangers a root greets at a time, and before it commits."""
MARGIN_S = 0.5
"""From an election to the moment when the slowest peer has its view, besides the way down."""
MAX_STEP = 2**62 - 1
FASTEST = 1e6
"""Steps a second; whoever claims more is not believed."""


@dataclass(frozen=True, slots=True)
class Timers:
    """How often neighbours are greeted, and how long news of them holds; seconds."""

    hello_s: float
    max_age_s: float

    @property
    def hold_s(self) -> float:
        """Least time between two greetings."""
        return self.hello_s / 10


@dataclass(frozen=True, slots=True)
class Viewed:
    """The coordinator published a view, and leads if that is news. `seats` are its members, `tree`
    and `links` this peer's neighbours in its trees, and in its communication graph."""

    age: Age
    seats: tuple[Seat, ...]
    tree: frozenset[str]
    links: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Led:
    """Whether there is a coordinator to lead: from its view on, until it cannot be reached."""

    led: bool


@dataclass(frozen=True, slots=True)
class Heard:
    """A hello came."""

    hello: Hello


@dataclass(frozen=True, slots=True)
class Unreachable:
    """The transport says so."""

    peer: str


@dataclass(frozen=True, slots=True)
class Paced:
    """How far this peer is, and how many steps it takes per second."""

    step: int
    rate: float


@dataclass(frozen=True, slots=True)
class Tick:
    """The deadline asked for has come."""


Event: TypeAlias = Viewed | Led | Heard | Unreachable | Paced | Tick


@dataclass(frozen=True, slots=True)
class Say:
    """Greet that peer; it may get lost."""

    to: Seat
    hello: Hello


@dataclass(frozen=True, slots=True)
class Adopt:
    """Train in this tree from its step on."""

    commit: Commit


Effect: TypeAlias = Say | Adopt


@dataclass
class _Port:
    """A link to a neighbour, and what was heard there last."""

    seat: Seat
    number: Port
    hello: Hello | None = None
    at: float = -math.inf
    said: object = None  # the news that it was told last


@dataclass(frozen=True)
class _Beat:
    """How far a root has counted, and since when."""

    beat: tuple[int, int]
    risen_at: float


@dataclass(frozen=True)
class _Held:
    """The epoch that this peer trains in."""

    age: Age = (0, 0)
    lives: frozenset[tuple[str, int]] = frozenset()
    tree: frozenset[str] = frozenset()  # this peer's neighbours
    commit: Commit | None = None  # None: a coordinator's


@dataclass(frozen=True)
class _Place:
    """Where in the tree this peer is, as far as it knows, and since when."""

    root: BridgeId
    cost: int = 0
    parent: str = ""
    children: frozenset[str] = frozenset()
    alive: frozenset[str] = frozenset()  # neighbours that are heard, and hear it
    since: float = field(default=-math.inf, compare=False)


class Healer:
    """One peer's part in keeping the tree. See the module's text for the rules."""

    def __init__(self, me: Seat, tag: int, timers: Timers) -> None:
        """`tag`, from 1 to below `MAX_TAG`: no other peer has it, nor another life of this one."""
        assert 0 < tag < MAX_TAG, tag
        self.me, self.timers = me, timers
        self.known: dict[str, Seat] = {}
        self.led = True
        self._first_number = tag * FIRST_HEALED_NUMBER
        self._id = bridge_id(me.peer)
        self._ports: dict[str, _Port] = {}
        self._numbered = 0  # ports so far
        self._links: frozenset[str] = frozenset()  # their ports stay, heard or not
        self._beats: dict[str, _Beat] = {}  # kept: else what dead roots said would count as news
        self._beat = 0
        self._place = _Place(self._id)
        self._has_stood = False  # that `_place` has stood for `max_age_s` was seen to
        self._held = _Held()
        self._largest: Age = (0, 0)
        self._last_commit: Age | None = None
        self._pace = Paced(0, 0.0)
        self._said_at = self._greeted_at = -math.inf
        self._probed, self._probed_at = 0, -math.inf
        self._report: Report | None = None
        self._deadline: float | None = None

    @property
    def held(self) -> Age:
        """(term, number) of the epoch that this peer trains in."""
        return self._held.age

    @property
    def members(self) -> frozenset[str]:
        """Who is in that epoch."""
        return frozenset(peer for peer, _ in self._held.lives)

    @property
    def hears(self) -> frozenset[str]:
        """The neighbours that it hears."""
        return frozenset(peer for peer, port in self._ports.items() if port.hello)

    @property
    def root(self) -> str:
        """Whom it takes for the root."""
        return peer_of(self._place.root)

    def next_deadline(self) -> float | None:
        """When to be woken with a `Tick`; None while a coordinator leads."""
        return self._deadline

    def _next_deadline(self) -> float:
        max_age_s = self.timers.max_age_s
        times = [self._greeted_at + self.timers.hello_s]
        times += [port.at + max_age_s for port in self._ports.values() if port.hello]
        if self._place.root != self._id:
            times.append(self._beats[self.root].risen_at + max_age_s)
        if not self._has_stood:
            times.append(self._place.since + max_age_s)
        if self._has_news():
            times.append(self._said_at + self.timers.hold_s)
        return min(times)

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take one event at time `now` (seconds, monotonic) and say what to do."""
        commit: Commit | None = None
        match event:
            case Viewed():
                self._viewed(event, now)
            case Led(led):
                self._lead(led, now)
            case Heard(hello):
                commit = self._heard(hello, now)
            case Unreachable(peer):
                if peer in self._ports:
                    self._ports[peer].hello = None
            case Paced():
                self._pace = event
            case Tick():
                pass
        effects = [] if self.led else self._go_on(commit, now)
        self._deadline = None if self.led else self._next_deadline()
        return effects

    # --- with a coordinator ------------------------------------------------------------------

    def _viewed(self, viewed: Viewed, now: float) -> None:
        """From now on the coordinator leads: a root that heard of its view sooner than from it
        would commit a tree to go beyond that."""
        if viewed.age <= self._held.age:
            return
        self._lead(True, now)
        self._know(viewed.seats)
        lives = frozenset(seat.life for seat in viewed.seats)
        self._held = _Held(viewed.age, lives, viewed.tree)
        self._largest = max(self._largest, viewed.age)
        self._links = viewed.tree | frozenset(viewed.links)

    def _know(self, seats: Iterable[Seat]) -> None:
        """Those that are gone stay known: they may be on the other side of a partition."""
        for seat in seats:
            known = self.known.get(seat.peer)
            newer = known is None or seat.incarnation >= known.incarnation
            if seat.peer != self.me.peer and newer and len(self.known) < MAX_MEMBERS:
                self.known[seat.peer] = seat

    def _lead(self, led: bool, now: float) -> None:
        if led == self.led:
            return
        self.led = led
        self._ports, self._place, self._has_stood = {}, _Place(self._id, since=now), False
        self._said_at = self._greeted_at = -math.inf
        if not led:
            for peer in sorted(self._links & set(self.known), key=bridge_id):
                self._port(self.known[peer])

    # --- what comes in -----------------------------------------------------------------------

    def _heard(self, hello: Hello, now: float) -> Commit | None:
        """Take in what a neighbour says; returns the tree that it passes on, if any."""
        seat, root = hello.seat, peer_of(hello.bpdu.root)
        known = self.known.get(seat.peer)
        if self.led or known is None or seat.incarnation < known.incarnation:
            return None
        if root not in self._beats and len(self._beats) >= MAX_MEMBERS:
            return None
        newest = max(hello.largest, hello.commit.age) if hello.commit else hello.largest
        if newest[0] > self._largest[0] + LEAP:
            return None
        port = self._port(seat)
        before = port.hello
        if before and (seat.incarnation, hello.beat) <= (before.seat.incarnation, before.beat):
            return None  # late, or twice
        self.known[seat.peer] = port.seat = seat
        port.hello, port.at = hello, now
        self._largest = max(self._largest, hello.largest)
        if root not in self._beats or hello.root_beat > self._beats[root].beat:
            self._beats[root] = _Beat(hello.root_beat, now)
        return hello.commit

    def _port(self, seat: Seat) -> _Port:
        if seat.peer not in self._ports:
            self._numbered += 1
            self._ports[seat.peer] = _Port(seat, self._numbered)
        return self._ports[seat.peer]

    # --- what follows ------------------------------------------------------------------------

    def _go_on(self, passed_on: Commit | None, now: float) -> list[Effect]:
        self._settle(now)
        effects: list[Effect] = []
        if passed_on and self._is_for_us(passed_on):
            effects.append(self._adopt(passed_on))
        self._report = self._reported()
        strangers: list[Seat] = []
        first = False
        if self._place.root == self._id and self._report:
            strangers = self._strangers(self._report)
            first = bool(strangers) and self._probed_at < self._place.since
            waits = first or (strangers and now < self._probed_at + self.timers.hello_s)
            if not waits and self._is_needed(self._report):
                effects += self._commit(self._report)
        if first or now >= self._greeted_at + self.timers.hello_s:
            self._greeted_at = now
            said = self._say(self._ports.values(), now)
            return [*effects, *said, *self._probe(strangers, now, first=first)]
        if self._has_news() and now >= self._said_at + self.timers.hold_s:
            effects += self._say([port for port in self._ports.values() if port.hello], now)
        return effects

    def _settle(self, now: float) -> None:
        """Forget what is too old, and let the bridge choose root and parent."""
        max_age_s = self.timers.max_age_s
        for peer, port in [*self._ports.items()]:
            if port.hello and now >= port.at + max_age_s:
                port.hello = None
            if port.hello is None and peer not in self._links:
                del self._ports[peer]
        heard = {port.seat.peer: port.hello for port in self._live_ports() if port.hello}
        ports = {self._ports[peer].number: peer for peer in heard}
        bridge = Bridge(
            self._id,
            dict.fromkeys(ports, 1),
            {number: heard[peer].bpdu for number, peer in ports.items() if self._lives(peer, now)},
        )
        parent = ports[bridge.root_port] if bridge.root_port is not None else ""
        children = frozenset(
            peer
            for peer, hello in heard.items()
            if hello.parent == self.me.peer and hello.bpdu.root == bridge.root
        )
        place = _Place(bridge.root, bridge.cost, parent, children, frozenset(heard), now)
        if place != self._place:
            self._place = place
        self._has_stood = now >= self._place.since + max_age_s

    def _lives(self, peer: str, now: float) -> bool:
        """Whether the root that this neighbour names has been counting of late."""
        hello = self._ports[peer].hello
        assert hello is not None
        beat = self._beats[peer_of(hello.bpdu.root)]
        return now < beat.risen_at + self.timers.max_age_s

    # --- reports and commits -----------------------------------------------------------------

    def _reported(self) -> Report | None:
        """Everybody below this peer, if all has stood for long enough and all agree."""
        place = self._place
        if not self._has_stood:
            return None
        nodes = [self._node()]
        for port in self._live_ports():
            assert port.hello is not None
            if port.hello.bpdu.root != place.root:
                return None
            if port.seat.peer in place.children:
                if port.hello.report is None:
                    return None
                nodes += port.hello.report
        peers = {node.seat.peer for node in nodes}
        sound = len(peers) == len(nodes) <= MAX_MEMBERS and place.parent not in peers
        return tuple(nodes) if sound else None

    def _node(self) -> Node:
        place = self._place
        links = tuple(sorted(place.alive, key=bridge_id))
        intact = self._held.tree <= place.alive
        return Node(self.me, place.parent, links, self._held.age, intact)

    def _is_needed(self, report: Report) -> bool:
        """Whether the tree that this root holds does not stand, or is not on its way to all."""
        held = self._held
        if held.age != self._largest or held.lives != {node.seat.life for node in report}:
            return True
        is_ours = held.age == self._last_commit
        return any(not node.intact if node.held == held.age else not is_ours for node in report)

    def _commit(self, report: Report) -> list[Adopt]:
        """Everybody's tree, under a (term, number) that nothing else ever has; nothing if the
        reports do not make a tree."""
        depth = _depth(report, self.me.peer)
        if depth is None:
            return []
        self._last_commit = self._next_age(report)
        links = {node.seat.peer: set(node.links) for node in report}
        pairs = [(a, b) for a, row in links.items() for b in row if a in links.get(b, ())]
        tree = [(node.seat.peer, node.parent) for node in report if node.parent]
        pace = self._subtree_pace()
        way_s = MARGIN_S + self.timers.hello_s * (depth + 1)
        commit = Commit(
            age=self._last_commit,
            root=self.me.peer,
            members=tuple(sorted((n.seat for n in report), key=lambda s: bridge_id(s.peer))),
            tree=in_order(tree),
            links=in_order([*pairs, *tree]),
            step=pace.step,
            effective_step=min(pace.step + math.ceil(pace.rate * way_s) + 1, MAX_STEP),
        )
        adopted = self._adopt(commit)
        self._report = self._reported()
        return [adopted]

    def _next_age(self, report: Report) -> Age:
        term, number = self._largest
        own = range(self._first_number, self._first_number + FIRST_HEALED_NUMBER)
        are_ours = all(node.held[0] == term and node.held[1] in own for node in report)
        if self._largest == self._last_commit and are_ours and number + 1 in own:
            return (term, number + 1)
        return (term + 1, self._first_number)

    def _is_for_us(self, commit: Commit) -> bool:
        """A tree comes from the root by way of parents, and is none that was left behind."""
        ours = bridge_id(commit.root) == self._place.root != self._id
        return ours and commit.age > self._held.age and self.me in commit.members

    def _adopt(self, commit: Commit) -> Adopt:
        lives = frozenset(seat.life for seat in commit.members)
        self._held = _Held(commit.age, lives, commit.neighbours(self.me.peer), commit)
        self._largest = max(self._largest, commit.age)
        self._know(commit.members)
        return Adopt(commit)

    def _subtree_pace(self) -> Paced:
        """The furthest below and the fastest."""
        hellos = [self._ports[peer].hello for peer in self._place.children]
        paces = [self._pace, *(Paced(hello.step, hello.rate) for hello in hellos if hello)]
        rate = max(pace.rate for pace in paces)
        return Paced(max(pace.step for pace in paces), min(rate, FASTEST))

    # --- what goes out -----------------------------------------------------------------------

    def _live_ports(self) -> list[_Port]:
        return [port for port in self._ports.values() if port.hello and port.hello.hears]

    def _has_news(self) -> bool:
        return any(port.hello and port.said != self._news(port) for port in self._ports.values())

    def _news(self, port: _Port) -> object:
        """What a hello there tells, without what changes all the time."""
        place, held = self._place, self._held
        report = self._report if port.seat.peer == place.parent else None
        tree = (place.root, place.cost, place.parent)
        hears = port.hello is not None
        return (tree, hears, self._largest, held.age, report, self._passes_on(port))

    def _passes_on(self, port: _Port) -> bool:
        """Whether a child there still lacks the tree that it is in."""
        commit, hello = self._held.commit, port.hello
        if commit is None or hello is None or port.seat.peer not in self._place.children:
            return False
        return bridge_id(commit.root) == self._place.root and hello.held < commit.age

    def _say(self, ports: Iterable[_Port], now: float) -> list[Say]:
        self._said_at = now
        self._beat += 1
        said = []
        for port in ports:
            port.said = self._news(port)
            said.append(Say(port.seat, self._hello(port)))
        return said

    def _strangers(self, report: Report) -> list[Seat]:
        """Known peers that are not below this root."""
        inside = {node.seat.peer for node in report}
        return [seat for peer, seat in sorted(self.known.items()) if peer not in inside]

    def _probe(self, strangers: list[Seat], now: float, *, first: bool) -> list[Say]:
        """Greet some of them, others each time."""
        if not strangers:
            return []
        some = min(FIRST_PROBES if first else PROBES, len(strangers))
        chosen = [strangers[(self._probed + k) % len(strangers)] for k in range(some)]
        self._probed += some
        self._probed_at = now
        return [Say(seat, self._hello(_Port(seat, 0))) for seat in chosen]

    def _hello(self, port: _Port) -> Hello:
        place, held, peer = self._place, self._held, port.seat.peer
        is_root = place.root == self._id
        pace = self._subtree_pace()
        return Hello(
            seat=self.me,
            beat=self._beat,
            bpdu=Bpdu(place.root, place.cost, self._id, port.number),
            root_beat=(
                (self.me.incarnation, self._beat) if is_root else self._beats[self.root].beat
            ),
            parent=place.parent,
            hears=port.hello is not None,
            largest=self._largest,
            held=held.age,
            step=pace.step,
            rate=pace.rate,
            report=self._report if peer == place.parent else None,
            commit=held.commit if self._passes_on(port) else None,
        )


def _depth(report: Report, root: str) -> int | None:
    """Hops from the root to the peer that is farthest from it; None if not all hang on the root."""
    below: dict[str, list[str]] = {}
    for node in report:
        below.setdefault(node.parent, []).append(node.seat.peer)
    level, reached, depth = [root], 0, -1
    while level:
        reached, depth = reached + len(level), depth + 1
        level = [child for peer in level for child in below.get(peer, ())]
    whole = below.get("") == [root] and reached == len(report)
    return depth if whole else None
