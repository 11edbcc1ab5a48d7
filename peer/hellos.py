"""What peers tell each other while no coordinator leads, and the ranks by which they are compared.

What belongs here: the values that `healing` judges and the transport carries.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

from coordinator.members import natural_order
from coordinator.spanning_tree import Bpdu, BridgeId

Age: TypeAlias = tuple[int, int]
"""(term, number) of an epoch."""

MAX_MEMBERS = 1024


@dataclass(frozen=True, slots=True)
class Seat:
    """A peer in its present life, and where it serves."""

    peer: str
    incarnation: int
    address: str = ""
    weight: float = 1.0  # of its model in averages

    @property
    def life(self) -> tuple[str, int]:
        """What tells it from others, and from its earlier lives."""
        return (self.peer, self.incarnation)


@dataclass(frozen=True, slots=True)
class Node:
    """What a peer reports of itself."""

    seat: Seat
    parent: str  # the peer behind its root port; "" at the root
    links: tuple[str, ...]  # the neighbours that it hears, and that hear it
    held: Age  # the epoch that it trains in
    intact: bool  # it hears all its neighbours in that epoch's trees


Report: TypeAlias = tuple[Node, ...]
"""A subtree: the peer that reports, then everyone below it."""


@dataclass(frozen=True, slots=True)
class Commit:
    """A tree that stands from `effective_step` on; peers far behind `step` go on from there."""

    age: Age
    root: str
    members: tuple[Seat, ...]  # in visiting order
    tree: tuple[tuple[str, str], ...]  # the end visited first in front, sorted by that order
    links: tuple[tuple[str, str], ...]  # of the tree and beside it: who hears whom; likewise
    step: int  # the largest of any member
    effective_step: int

    @property
    def n(self) -> int:
        """Swarm size."""
        return len(self.members)

    def neighbours(self, peer: str) -> frozenset[str]:
        """Its neighbours in the tree."""
        return frozenset(end for edge in self.tree if peer in edge for end in edge if end != peer)


@dataclass(frozen=True, slots=True)
class Hello:
    """What a peer tells a neighbour. Later ones, by `beat`, replace earlier ones."""

    seat: Seat
    beat: int
    bpdu: Bpdu
    root_beat: tuple[int, int]  # incarnation and count of its root's last hello known
    parent: str
    hears: bool  # whether it hears whom it speaks to: a link that works one way is none
    largest: Age  # of all epochs that it knows of
    held: Age
    step: int  # the largest in its subtree
    rate: float  # steps per second, likewise
    report: Report | None = None  # to its parent, once it stands
    commit: Commit | None = None  # to children that do not hold it yet


@lru_cache(4 * MAX_MEMBERS)
def bridge_id(peer: str) -> BridgeId:
    """The rank of a peer's bridge: peers are visited in this order everywhere."""
    return BridgeId(0, (natural_order(peer), peer))


def peer_of(bridge: BridgeId) -> str:
    """Whose bridge that is."""
    assert isinstance(bridge.peer, tuple)
    return bridge.peer[1]


def is_tree(members: Collection[str], edges: Collection[tuple[str, str]]) -> bool:
    """Whether these edges, which are among the members, connect them all without a cycle."""
    links: dict[str, list[str]] = {peer: [] for peer in members}
    for a, b in edges:
        links[a].append(b)
        links[b].append(a)
    reached, to_visit = set(), list(links)[:1]
    while to_visit:
        peer = to_visit.pop()
        if peer not in reached:
            reached.add(peer)
            to_visit += links[peer]
    return len(reached) == len(links) == len(edges) + 1


def in_order(edges: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Each once, the end visited first in front."""
    ordered = {(min(e, key=bridge_id), max(e, key=bridge_id)) for e in edges}
    return tuple(sorted(ordered, key=lambda e: (bridge_id(e[0]), bridge_id(e[1]))))
