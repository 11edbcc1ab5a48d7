"""RelaySum: how sums travel along trees (Vogels et al. 2021, section 3). Each peer sends each
neighbour its own contribution and what came from all other neighbours a step before:

    m_{i->j} = own + sum over k in N_i without j of m_{k->i}   (of step t-1)
    c_{i->j} = 1   + sum over k in N_i without j of c_{k->i}
    n_bar    = 1   + sum over j of c_{j->i}

Where peers do not weigh the same (`View.weights`), each contributes w_i times its own, and what is
summed in a message weighs

    w_{i->j} = w_i + sum over k in N_i without j of w_{k->i}
    w_bar    = w_i + sum over j of w_{j->i}

w takes the place of c in what methods make of the sums, and W, the sum of all w_i, that of n; with
equal weights they are the same. A peer of weight 0 contributes nothing and relays the others.

After diameter steps every message holds all that is behind its edge, each once. What is
contributed, and what is made of the sums, is a method's own: models (`relaysgd`), updates
(`relaysgd_grad`), samples (`relaysum`).

A lost message counts neither now nor in what is relayed next. With lag 1 (overlap) a message sent
in step t is used in step t+1. On two trees each carries half of the coordinates, with messages and
counts of its own.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable
from typing import TypeAlias

from peer.algorithms.core import (
    Coef,
    Conserved,
    CoreState,
    Drop,
    DropReason,
    Effect,
    Head,
    Kind,
    Lin,
    Message,
    PeerId,
    Received,
    Reg,
    Run,
    Send,
    Verdict,
    View,
)
from peer.algorithms.slots import Edge, Inbox, Label
from peer.algorithms.synchronous import Synchronous

Terms: TypeAlias = tuple[tuple[Coef, Reg | Message], ...]


class Relaying(Synchronous):
    """A method that relays sums. Messages kept: one per edge, twice (last step's, still being
    relayed, and this step's)."""

    kind = Kind.RELAY
    conserves = Conserved.WEIGHT
    weighs = True
    uses_late = True

    def __init__(self, run: Run, *, lag: int = 0) -> None:
        super().__init__(run, lag=lag)
        self._relayed: dict[Edge, Received] = {}  # what came in, to be relayed next
        self._counted: Coef = 1

    @abstractmethod
    def own(self, view: View) -> Terms:
        """This peer's contribution: its own, times what it weighs; nothing if that is 0."""

    @abstractmethod
    def average(self, view: View, tree: int, w_bar: Coef) -> list[Effect]:
        """Use the sums of one tree (`came`), to which peers of weight w_bar contributed: n_bar of
        them, where all weigh the same."""

    def sum_in(self, received: Received) -> Message:
        """The sum in a message, as it is used and relayed."""
        return received.messages[0]

    def alone(self, view: View, tree: int) -> list[Effect]:  # noqa: ARG002
        """Go on without anybody's contribution, as if the step had no averaging."""
        return []

    def begin_epoch(self, view: View) -> list[Effect]:  # noqa: ARG002
        self._relayed = {}  # input: m^(-1) = 0, c^(-1) = 0
        return []

    def kept(self) -> CoreState:
        return CoreState({}, tuple(self._relayed.values()))

    def restore(self, state: CoreState) -> None:
        self._relayed = {(r.head.tree, r.head.sender): r for r in state.received}

    def expects(self, view: View, label: Label) -> tuple[Edge, ...]:  # noqa: ARG002
        return tuple((tree, j) for tree, around in enumerate(view.trees) for j in around)

    def judge(self, view: View, head: Head) -> Verdict:
        if head.tree >= len(view.trees) or head.sender not in view.trees[head.tree]:
            return Verdict.NOT_A_NEIGHBOUR
        fits = 1 <= head.count <= view.trees[head.tree][head.sender]
        fits = fits and (not view.weights or view.can_weigh(head))
        return Verdict.ACCEPTED if fits else Verdict.BAD_COUNT

    def outgoing(self, view: View) -> list[Send]:
        return [self._message(view, tree, j) for tree, j in self.expects(view, self._label)]

    def _message(self, view: View, tree: int, j: PeerId) -> Send:
        others = [m for (k_tree, k), m in self._relayed.items() if k_tree == tree and k != j]
        lin = Lin((*self.own(view), *self._terms(view, others)))
        count = 1 + sum(m.head.count for m in others)
        weight = view.weight + sum(m.head.weight for m in others) if view.weights else 1
        return Send(j, self.head(count, tree=tree, weight=weight), (lin,))

    def arrived(self, inbox: Inbox) -> None:
        self._relayed = {edge: received for edge, received in inbox.items() if received}

    def combine(self, view: View, inbox: Inbox) -> list[Effect]:
        self.arrived(inbox)
        counts = [self._count(tree) for tree in range(len(view.trees))]
        self._counted = min(counts, default=1)
        if max(counts, default=1) > view.n:
            return self._abandon(view)
        weights = counts
        if view.weights:
            weights = [self._weight(view, tree) for tree in range(len(view.trees))]
        averages = (self.average(view, tree, w_bar) for tree, w_bar in enumerate(weights))
        return [effect for effects in averages for effect in effects]

    def came(self, tree: int) -> Terms:
        """The sum of what came over the edges of a tree."""
        sums = [m for (k, _), m in self._relayed.items() if k == tree]
        return self._terms(self._view, sums)

    def _terms(self, view: View, sums: Iterable[Received]) -> Terms:
        """A sum of models that weigh nothing is 0, whatever its sender put there."""
        if view.weights:
            sums = [m for m in sums if m.head.weight]
        return tuple((1, self.sum_in(m)) for m in sums)

    def weight_that_came(self, tree: int) -> Coef:
        """What the peers in those sums weigh together, where they do not weigh the same."""
        return sum(m.head.weight for (k, _), m in self._relayed.items() if k == tree)

    def _weight(self, view: View, tree: int) -> Coef:
        """w_bar. Once it counts all, it is W, whatever order its sums were formed in."""
        if self._count(tree) == view.n:
            return view.total_weight
        return view.weight + self.weight_that_came(tree)

    def _count(self, tree: int) -> Coef:
        return 1 + sum(m.head.count for (k, _), m in self._relayed.items() if k == tree)  # n_bar

    def _abandon(self, view: View) -> list[Effect]:
        """Counts above n in one step: some peer relays in a cycle. Trust none of it."""
        dropped = [Drop(m.head, DropReason.COUNT) for m in self._relayed.values()]
        self._relayed = {}
        self._counted = 1
        alone = (self.alone(view, tree) for tree in range(len(view.trees)))
        return [*dropped, *(effect for effects in alone for effect in effects)]

    def counted(self) -> Coef:
        return self._counted
