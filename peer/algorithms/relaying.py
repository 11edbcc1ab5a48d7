"""RelaySum: how sums travel along trees (Vogels et al. 2021, section 3). Each peer sends each
neighbour its own contribution and what came from all other neighbours a step before:

    m_{i->j} = own + sum over k in N_i without j of m_{k->i}   (of step t-1)
    c_{i->j} = 1   + sum over k in N_i without j of c_{k->i}
    n_bar    = 1   + sum over j of c_{j->i}

so that after diameter steps every message holds all that is behind its edge, each once. What is
contributed, and what is made of the sums, is a method's own: models (`relaysgd`), updates
(`relaysgd_grad`), samples (`relaysum`).

A lost message counts neither now nor in what is relayed next. With lag 1 (overlap) a message sent
in step t is used in step t+1. On two trees each carries half of the coordinates, with messages and
counts of its own.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TypeAlias

from peer.algorithms.core import (
    Coef,
    Conserved,
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
    uses_late = True

    def __init__(self, run: Run, *, lag: int = 0) -> None:
        super().__init__(run, lag=lag)
        self._relayed: dict[Edge, Received] = {}  # what came in, to be relayed next
        self._counted: Coef = 1

    @abstractmethod
    def own(self) -> Terms:
        """This peer's contribution."""

    @abstractmethod
    def average(self, view: View, tree: int, n_bar: Coef) -> list[Effect]:
        """Use the sums of one tree (`came`), to which n_bar peers contributed."""

    def sum_in(self, received: Received) -> Message:
        """The sum in a message, as it is used and relayed."""
        return received.messages[0]

    def alone(self, view: View, tree: int) -> list[Effect]:  # noqa: ARG002
        """Go on without anybody's contribution, as if the step had no averaging."""
        return []

    def begin_epoch(self, view: View) -> list[Effect]:  # noqa: ARG002
        self._relayed = {}  # input: m^(-1) = 0, c^(-1) = 0
        return []

    def expects(self, view: View, label: Label) -> tuple[Edge, ...]:  # noqa: ARG002
        return tuple((tree, j) for tree, around in enumerate(view.trees) for j in around)

    def judge(self, view: View, head: Head) -> Verdict:
        if head.tree >= len(view.trees) or head.sender not in view.trees[head.tree]:
            return Verdict.NOT_A_NEIGHBOUR
        behind = view.trees[head.tree][head.sender]
        return Verdict.ACCEPTED if 1 <= head.count <= behind else Verdict.BAD_COUNT

    def outgoing(self, view: View) -> list[Send]:
        return [self._message(tree, j) for tree, j in self.expects(view, self._label)]

    def _message(self, tree: int, j: PeerId) -> Send:
        others = [m for (k_tree, k), m in self._relayed.items() if k_tree == tree and k != j]
        lin = Lin((*self.own(), *((1, self.sum_in(m)) for m in others)))
        count = 1 + sum(m.head.count for m in others)
        return Send(j, self.head(count, tree=tree), (lin,))

    def arrived(self, inbox: Inbox) -> None:
        self._relayed = {edge: received for edge, received in inbox.items() if received}

    def combine(self, view: View, inbox: Inbox) -> list[Effect]:
        self.arrived(inbox)
        counts = [self._count(tree) for tree in range(len(view.trees))]
        self._counted = min(counts, default=1)
        if max(counts, default=1) > view.n:
            return self._abandon(view)
        averages = (self.average(view, tree, n_bar) for tree, n_bar in enumerate(counts))
        return [effect for effects in averages for effect in effects]

    def came(self, tree: int) -> Terms:
        """The sum of what came over the edges of a tree."""
        return tuple((1, self.sum_in(m)) for (k, _), m in self._relayed.items() if k == tree)

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
