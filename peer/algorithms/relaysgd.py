"""RelaySGD: Algorithm 1 of Vogels et al. 2021, with counters (lines 6 and 9) and equation 1.

On a tree, peer i sends its neighbour j the sum of its own model and of what came from all other
neighbours a step before, together with the number of models in it:

    line 3   x_half = x + u                                    (local steps)
    line 5   m_{i->j} = x_half + sum over k in N_i without j of m_{k->i}   (of step t-1)
    line 6   c_{i->j} = 1      + sum over k in N_i without j of c_{k->i}
    line 9   n_bar = 1 + sum over j of c_{j->i}
    line 10  x <- (x_half + sum_j m_{j->i}) / n_bar            fallback "counts"
    eq. 1    x <- (x_half + sum_j m_{j->i} + (n - n_bar) x) / n   fallback "previous"

A model that travelled h hops is max(h - 1, 0) steps old; two peers are exact all-reduce. A lost
message counts neither now nor in what is relayed next. With `overlap` a message sent in step t is
used in step t+1, the form of the paper's analysis: the age is h, and the network has a whole step
of computation to hide behind. On two trees each carries half of the coordinates, with messages
and counts of its own (section 3, "Spanning trees").
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from peer.algorithms.core import (
    LIVE,
    Coef,
    Drop,
    DropReason,
    Effect,
    Head,
    Kind,
    Lin,
    Message,
    Observe,
    PeerId,
    Received,
    Reg,
    Role,
    Run,
    Send,
    Set,
    Verdict,
    View,
)
from peer.algorithms.slots import Label
from peer.algorithms.synchronous import Edge, Inbox, Synchronous

X = Reg(LIVE)
PREVIOUS = Reg("previous")  # x^(t), the model before this step's update


@dataclass(frozen=True)
class Options:
    fallback: Literal["previous", "counts"] = "previous"
    overlap: bool = False


class RelaySGD(Synchronous):
    """Relays sums of models along one tree, or along two that carry half the model each.

    Registers: the previous model, with fallback "previous". Messages kept: one per edge, twice
    (last step's, still being relayed, and this step's).
    """

    name = "relaysgd"
    kind = Kind.RELAY
    uses_late = True

    def __init__(self, run: Run, options: Options | None = None) -> None:
        self.options = options or Options()
        super().__init__(run, lag=int(self.options.overlap))
        self._relayed: dict[Edge, Received] = {}  # what came in, to be relayed next (line 5)
        self._counted: Coef = 1

    @property
    def registers(self) -> Mapping[str, Role]:
        return {PREVIOUS.name: Role.MODEL} if self.options.fallback == "previous" else {}

    def begin_epoch(self, view: View) -> list[Effect]:  # noqa: ARG002
        self._relayed = {}  # input: m^(-1) = 0, c^(-1) = 0
        return []

    def before_training(self) -> list[Effect]:
        return [Set(PREVIOUS, Lin(((1, X),)))] if self.registers else []

    def lr_scale(self, view: View) -> Coef:
        """The tree's factor holds once sums are complete: after the first diameter steps."""
        return view.lr_scale if self.steps_in_epoch() >= view.diameter else 1

    def period(self) -> int | None:
        settled = self.view and self.steps_in_epoch() > self.view.diameter  # sums are complete
        return 1 if settled else None

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
        lin = Lin(((1, X), *((1, m.messages[0]) for m in others)))  # line 5
        count = 1 + sum(m.head.count for m in others)  # line 6
        return Send(j, self.head(count, tree=tree), (lin,))

    def arrived(self, inbox: Inbox) -> None:
        self._relayed = {edge: received for edge, received in inbox.items() if received}

    def combine(self, view: View, inbox: Inbox) -> list[Effect]:
        self.arrived(inbox)
        counts = [self._count(tree) for tree in range(len(view.trees))]
        self._counted = min(counts, default=1)
        if max(counts, default=1) > view.n:
            return self._abandon()
        effects: list[Effect] = []
        for tree, n_bar in enumerate(counts):
            effects += [
                *self._distance(tree, n_bar),
                Set(X, self._average(view, tree, n_bar), tree),
            ]
        return effects

    def _count(self, tree: int) -> Coef:
        return 1 + sum(m.head.count for (k, _), m in self._relayed.items() if k == tree)  # line 9

    def _average(self, view: View, tree: int, n_bar: Coef) -> Lin:
        terms: tuple[tuple[Coef, Reg | Message], ...] = ((1, X), *self._sum(tree))
        if self.options.fallback == "counts":
            return Lin(terms, divisor=n_bar)  # line 10 as printed
        missing = view.n - n_bar
        return Lin((*terms, (missing, PREVIOUS)) if missing else terms, divisor=view.n)  # eq. 1

    def _sum(self, tree: int) -> tuple[tuple[Coef, Message], ...]:
        return tuple((1, m.messages[0]) for (k, _), m in self._relayed.items() if k == tree)

    def _distance(self, tree: int, n_bar: Coef) -> list[Effect]:
        """Consensus distance ||x_half - sum_j m_j / sum_j c_j||."""
        if n_bar == 1:
            return []
        negated = tuple((-1, m) for _, m in self._sum(tree))
        return [Observe("consensus_distance", Lin(((n_bar - 1, X), *negated), n_bar - 1), tree)]

    def _abandon(self) -> list[Effect]:
        """Counts above n in one step: some peer relays in a cycle. Trust none of it."""
        dropped = [Drop(m.head, DropReason.COUNT) for m in self._relayed.values()]
        self._relayed = {}
        self._counted = 1
        return [*dropped]

    def counted(self) -> Coef:
        return self._counted
