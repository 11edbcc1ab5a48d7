"""Facts about a tree: distances, who is behind an edge, and what relaying does to an update.

What belongs here: the value `Tree` and whatever follows from it alone. A model travels one hop a
step, so the hop distances of a tree decide how old the models are that a peer averages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import TypeAlias

from coordinator.graphs import Edge, GraphError, check_edges

Weight: TypeAlias = int | float | Fraction


@dataclass(frozen=True)
class Tree:
    """A tree over the peers 0..n-1; edges are stored sorted, each with u < v.

    Raises `GraphError` if the edges are no tree.
    """

    n: int
    edges: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        """Check that this is a tree, then store the edges in their one order."""
        if len(self.edges) != self.n - 1:
            problem = f"a tree of {self.n} peers has {self.n - 1} edges"
            raise GraphError("tree", f"{len(self.edges)} edges", problem, "give a spanning tree")
        check_edges([Edge(u, v) for u, v in self.edges], range(self.n), "tree")
        ordered = sorted((min(pair), max(pair)) for pair in self.edges)
        object.__setattr__(self, "edges", tuple(ordered))

    @cached_property
    def neighbours(self) -> tuple[tuple[int, ...], ...]:
        """For each peer its tree neighbours, ascending."""
        rows: list[list[int]] = [[] for _ in range(self.n)]
        for u, v in self.edges:
            rows[u].append(v)
            rows[v].append(u)
        return tuple(tuple(sorted(row)) for row in rows)

    def walk(self, start: int) -> list[tuple[int, int, int]]:
        """(peer, the peer before it, hops from `start`), nearest first; `start` precedes itself."""
        reached = [(start, start, 0)]
        for peer, before, hops in reached:  # grows while we walk along it
            reached += [(k, peer, hops + 1) for k in self.neighbours[peer] if k != before]
        return reached

    @cached_property
    def diameter(self) -> int:
        """Hops between the two peers farthest apart: how old the oldest model can get."""
        farthest = self.walk(0)[-1][0]
        return self.walk(farthest)[-1][2]

    @cached_property
    def _below_root(self) -> Mapping[int, int]:
        """For each peer but 0, the number of peers in the branch that hangs from it, itself too."""
        size = dict.fromkeys(range(self.n), 1)
        for peer, before, _ in reversed(self.walk(0)[1:]):
            size[before] += size[peer]
        del size[0]
        return size

    def behind(self, me: int) -> dict[int, int]:
        """For each tree neighbour of `me`, ascending, the number of peers behind that edge.

        It bounds the count of every message that may come over that edge; they sum to n - 1.
        """
        size = self._below_root
        return {
            k: size[k] if self._hangs_from(k, me) else self.n - size[me]
            for k in self.neighbours[me]
        }

    def weight_behind(self, me: int, weights: Sequence[Weight]) -> dict[int, Weight]:
        """For each tree neighbour of `me`, ascending, what the peers behind that edge weigh: by the
        `weights` of all peers, added from the nearest on."""
        through: dict[int, int] = {}  # by peer, the neighbour of `me` on the way to it
        behind: dict[int, Weight] = {}
        for peer, before, _ in self.walk(me)[1:]:
            k = through[peer] = peer if before == me else through[before]
            behind[k] = behind[k] + weights[peer] if k in behind else weights[peer]
        return {k: behind[k] for k in self.neighbours[me]}

    def _hangs_from(self, child: int, parent: int) -> bool:
        return parent == 0 or (child != 0 and self._below_root[child] < self._below_root[parent])

    def lr_factor(
        self, *, overlap: bool = False, weights: Sequence[Weight] | None = None
    ) -> Fraction:
        """What to multiply the learning rate by, so that an update counts as in all-reduce.

        An update ends with a weight alpha < 1/n in every model (RelaySGD, appendix D.1). The factor
        1/(alpha n) that makes up for it is 1 + the mean delay over all n^2 ordered pairs, where a
        model that came h hops is max(h - 1, 0) steps old, or h with `overlap`. Without weights that
        is 2 W/n^2 + 1/n, or 1 + 2 W/n^2 with overlap, W the Wiener index: the sum of the hop
        distances over all unordered pairs. With weights (one for each peer, such as its number of
        samples) the pair (i, j) counts w_i w_j / (sum of w)^2.
        """
        w = [Fraction(x) for x in weights] if weights is not None else [Fraction(1)] * self.n
        total = sum(w, Fraction(0))
        if len(w) != self.n or min(w) < 0 or total == 0:
            problem = f"not {self.n} numbers of at least 0, one of them positive"
            raise GraphError("weights", weights, problem, "give a weight for each peer")
        hops = sum(2 * part * (total - part) for part in self._weight_below_root(w))
        apart = 0 if overlap else total**2 - sum(x**2 for x in w)
        return 1 + (hops - apart) / total**2

    def _weight_below_root(self, weights: Sequence[Fraction]) -> list[Fraction]:
        """Weight behind each edge, seen from peer 0: each hop distance counts the edges between."""
        below = list(weights)
        for peer, before, _ in reversed(self.walk(0)[1:]):
            below[before] += below[peer]
        return below[1:]


def lr_factor_by_propagation(tree: Tree, *, overlap: bool = False) -> Fraction:
    """The factor of `Tree.lr_factor`, measured in place of derived.

    Every peer sends, step after step, a message of (origin, step) pairs in place of models, by the
    rules of Algorithm 1. Once all are in sight of all, the age of each pair that a peer would
    average is the delay, and the factor is 1 + their mean. Takes time O(n^2 diameter).
    """
    inbox: dict[tuple[int, int], dict[int, int]] = {}
    last_step = tree.diameter + 1
    for step in range(last_step + 1):
        sent = {
            (i, j): _relayed(tree, inbox, i, j, step)
            for i in range(tree.n)
            for j in tree.neighbours[i]
        }
        used, inbox = (inbox if overlap else sent), sent
    ages = [last_step - origin for models in used.values() for origin in models.values()]
    return 1 + Fraction(sum(ages), tree.n**2)


def _relayed(
    tree: Tree, inbox: Mapping[tuple[int, int], dict[int, int]], i: int, j: int, step: int
) -> dict[int, int]:
    """What i sends to j: its own model of this step, and what came from all others but j before."""
    message = {i: step}
    for k in tree.neighbours[i]:
        if k != j:
            message |= inbox.get((k, i), {})
    return message
