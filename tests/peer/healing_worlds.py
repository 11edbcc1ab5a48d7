"""Worlds for healers to live in: one with a clock, one whose adversary may do anything at any time.

Both hold every commit that anybody adopts against all others: never two trees under one
(term, number), nobody goes back to an older epoch, and a tree is a tree of its members.
"""

from __future__ import annotations

import heapq
import itertools
import pickle
import random
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import networkx as nx

from peer.healing import (
    Adopt,
    Effect,
    Event,
    Healer,
    Heard,
    Led,
    Paced,
    Say,
    Tick,
    Timers,
    Viewed,
)
from peer.hellos import Age, Commit, Hello, Seat

TIMERS = Timers(hello_s=1.0, max_age_s=3.0)
IMPATIENT = Timers(hello_s=1.0, max_age_s=1.0)
Pairs = Sequence[tuple[int, int]]
Tags = Callable[[int, int], int]
"""The tag of a peer by its number and life."""


def name(k: int) -> str:
    return f"peer-{k}"


def own_tag(k: int, life: int) -> int:
    return 1 + 8 * life + k


def tree_of(n: int, graph: Pairs) -> Pairs:
    return list(nx.bfs_tree(nx.Graph(graph), 0).edges) if n > 1 else []


class TwoTreesError(AssertionError):
    """The property does not hold."""


@dataclass
class Registry:
    """Every commit that anybody has adopted."""

    trees: dict[Age, object] = field(default_factory=dict)

    def take(self, commit: Commit, me: Seat, before: Age) -> None:
        content = (commit.root, commit.members, commit.tree, commit.links)
        if self.trees.setdefault(commit.age, content) != content:
            raise TwoTreesError(f"{commit.age}: {self.trees[commit.age]} and {content}")
        assert commit.age > before, (commit.age, before)
        assert me in commit.members
        graph = nx.Graph(commit.tree)
        graph.add_nodes_from(seat.peer for seat in commit.members)
        assert nx.is_tree(graph), commit
        assert len(graph) == commit.n == len({seat.peer for seat in commit.members})
        assert set(commit.tree) <= set(commit.links)


def viewed(k: int, age: Age, seats: Sequence[Seat], graph: Pairs) -> Viewed:
    """What a coordinator would tell peer k."""
    tree = tree_of(len(seats), graph)

    def neighbours(pairs: Pairs) -> list[str]:
        return [name(end) for pair in pairs if k in pair for end in pair if end != k]

    return Viewed(age, tuple(seats), frozenset(neighbours(tree)), tuple(neighbours(graph)))


# --- with a clock ---------------------------------------------------------------------------------

Loses = Callable[["World", int, int, int], bool]
"""Whether the message with this number, from one peer to another, is lost."""


class World:
    """Peers that lose their coordinator at time 0, on a network with a delay of 0.05 s."""

    def __init__(self, n: int, graph: Pairs, *, tags: Tags = own_tag) -> None:
        self.n, self.graph, self.tags = n, graph, tags
        self.now = 0.0
        self.registry = Registry()
        self.adopted: list[tuple[float, int, Commit]] = []
        self.messages = 0
        self.side: frozenset[int] = frozenset()  # parted from the rest
        self.one_way: frozenset[tuple[int, int]] = frozenset()  # nothing gets from a to b
        self.loses: Loses = lambda *_: False
        self.delay_s: Callable[[int], float] = lambda _: 0.05
        self.seats = [Seat(name(k), 1, f"127.0.0.1:{k + 1}") for k in range(n)]
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._deadlines: list[float | None] = [None] * n
        self.peers: list[Healer | None] = [
            Healer(s, tags(k, 0), TIMERS) for k, s in enumerate(self.seats)
        ]
        self.lead(range(n), (7, 1))
        for k in range(n):
            self.feed(k, Led(False))

    def lead(self, peers: Iterable[int], age: Age) -> None:
        """A coordinator's view for some of the peers, all of which are in it."""
        for k in peers:
            self.feed(k, viewed(k, age, self.seats, self.graph))

    def leave(self, k: int) -> None:
        """The coordinator cannot be reached by that peer."""
        self.feed(k, Led(False))

    def at(self, when: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (when, next(self._order), action))

    def crash(self, k: int) -> None:
        self.peers[k] = self._deadlines[k] = None

    def part(self, side: Collection[int]) -> None:
        self.side = frozenset(side)

    def feed(self, k: int, event: Event) -> None:
        healer = self.peers[k]
        if healer is None:
            return
        before = healer.held
        effects = healer.handle(event, self.now)
        self._deadlines[k] = healer.next_deadline()
        for effect in effects:
            if isinstance(effect, Adopt):
                self.registry.take(effect.commit, healer.me, before)
                self.adopted.append((self.now, k, effect.commit))
                before = effect.commit.age
            else:
                self._send(k, effect)

    def _send(self, sender: int, say: Say) -> None:
        to = int(say.to.peer.rpartition("-")[2])
        self.messages += 1
        if self.loses(self, self.messages, sender, to):
            return
        late = self.delay_s(self.messages)
        self.at(self.now + late, lambda: self._deliver(sender, to, say.hello))

    def _deliver(self, sender: int, to: int, hello: Hello) -> None:
        if (sender in self.side) == (to in self.side) and (sender, to) not in self.one_way:
            self.feed(to, Heard(hello))

    def run(self, until: float) -> None:
        while True:
            deadlines = [(due, k) for k, due in enumerate(self._deadlines) if due is not None]
            due, k = min(deadlines, default=(until, -1))
            if self._queue and self._queue[0][0] <= min(due, until):
                self.now, _, action = heapq.heappop(self._queue)
                action()
            elif due < until:
                self.now = max(self.now, due)
                self.feed(k, Paced(int(10 * self.now), 10.0))
                self.feed(k, Tick())
            else:
                self.now = until
                return

    def living(self) -> list[int]:
        return [k for k, healer in enumerate(self.peers) if healer]

    def assert_one_tree(self, members: Collection[int]) -> None:
        """These hold the same epoch, and are its members."""
        assert len({self._living(k).held for k in members}) == 1, self.adopted[-9:]
        for k in members:
            assert self._living(k).members == {name(k) for k in members}

    def _living(self, k: int) -> Healer:
        healer = self.peers[k]
        assert healer is not None
        return healer


# --- without one ----------------------------------------------------------------------------------

UnderWay = frozenset[tuple[int, Hello]]


@dataclass(frozen=True)
class State:
    """Of all peers (as bytes; None: dead), what is under way, and what the adversary has left."""

    peers: tuple[bytes | None, ...]
    clocks: tuple[float, ...]
    under_way: UnderWay
    losses: int
    crashes: int


class Adversary:
    """Delivers, holds back, loses and repeats messages, lets any peer's clock run to its next
    deadline, and lets peers die: in any order. Nothing keeps clocks together."""

    def __init__(
        self,
        n: int,
        graph: Pairs,
        *,
        tags: Tags = own_tag,
        losses: int = 1,
        crashes: int = 1,
        timers: Timers = IMPATIENT,
    ) -> None:
        self.registry = Registry()
        seats = [Seat(name(k), 1) for k in range(n)]
        peers = []
        for k, seat in enumerate(seats):
            healer = Healer(seat, tags(k, 0), timers)
            # the coordinator died while it told of a new epoch: the last peer has the old one
            healer.handle(viewed(k, (7, 1 if k == n - 1 else 2), seats, graph), 0.0)
            healer.handle(Led(False), 0.0)
            peers.append(pickle.dumps(healer))
        self.first = State(tuple(peers), (0.0,) * n, frozenset(), losses, crashes)

    def successors(self, state: State) -> Iterator[State]:
        for k, peer in enumerate(state.peers):
            if peer is not None:
                yield self._tick(state, k)
                if state.crashes:
                    yield self._replace(state, k, None, crashes=state.crashes - 1)
        for message in state.under_way:
            yield from self._arrive(state, message)

    def walk(self, rng: random.Random, steps: int) -> None:
        """One long way through it, at random."""
        state = self.first
        for _ in range(steps):
            living = [k for k, peer in enumerate(state.peers) if peer is not None]
            if not living:
                return
            draw = rng.random()
            if draw < 0.01 and state.crashes and len(living) > 1:
                k = rng.choice(living)
                state = self._replace(state, k, None, crashes=state.crashes - 1)
            elif draw < 0.3 or not state.under_way:
                state = self._tick(state, rng.choice(living))
            else:
                message = rng.choice(
                    sorted(state.under_way, key=lambda m: (m[0], m[1].seat.peer, m[1].beat))
                )
                state = rng.choice(list(self._arrive(state, message)))

    def explore(self, states: int) -> int:
        """Follow every way, the shortest first, until so many states are seen. How many were."""
        seen, to_visit = {self.first}, [self.first]
        while to_visit and len(seen) < states:
            following: list[State] = []
            for state in to_visit:
                for successor in self.successors(state):
                    if successor not in seen:
                        seen.add(successor)
                        following.append(successor)
                if len(seen) >= states:
                    break
            to_visit = following
        return len(seen)

    def _tick(self, state: State, k: int) -> State:
        healer = self._load(state, k)
        due = healer.next_deadline()
        assert due is not None
        clock = max(state.clocks[k], due)
        return self._act(state, k, healer, Tick(), clock, state.under_way)

    def _arrive(self, state: State, message: tuple[int, Hello]) -> Iterator[State]:
        rest = state.under_way - {message}
        to, hello = message
        if state.peers[to] is None:
            yield State(state.peers, state.clocks, rest, state.losses, state.crashes)
            return
        healer = self._load(state, to)
        yield self._act(state, to, healer, Heard(hello), state.clocks[to], rest)
        if state.losses:
            yield State(state.peers, state.clocks, rest, state.losses - 1, state.crashes)

    def _act(
        self, state: State, k: int, healer: Healer, event: Event, clock: float, rest: UnderWay
    ) -> State:
        before = healer.held
        effects: list[Effect] = healer.handle(event, clock)
        said = set()
        for effect in effects:
            if isinstance(effect, Adopt):
                self.registry.take(effect.commit, healer.me, before)
                before = effect.commit.age
            else:
                said.add((int(effect.to.peer.rpartition("-")[2]), effect.hello))
        clocks = (*state.clocks[:k], clock, *state.clocks[k + 1 :])
        peers = (*state.peers[:k], pickle.dumps(healer), *state.peers[k + 1 :])
        return State(peers, clocks, rest | said, state.losses, state.crashes)

    def _replace(self, state: State, k: int, peer: bytes | None, *, crashes: int) -> State:
        peers = (*state.peers[:k], peer, *state.peers[k + 1 :])
        return State(peers, state.clocks, state.under_way, state.losses, crashes)

    def _load(self, state: State, k: int) -> Healer:
        blob = state.peers[k]
        assert blob is not None
        healer = pickle.loads(blob)
        assert isinstance(healer, Healer)
        return healer
