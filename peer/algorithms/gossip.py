"""What the gossip family shares: whom a peer hears, and the weighted mean of what came.

    x <- sum over j in N_i and i of W_ij x_j      W_ij: `View.mixing`, this peer's row of W

The one rule for lost messages in any gossip has its home here: the weights of what is there, the
own included, are rescaled to sum to one. A complete row is used as it is, undivided.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

from peer.algorithms.clipping import clipped
from peer.algorithms.core import (
    LIVE,
    Coef,
    Conserved,
    Effect,
    Head,
    Kind,
    Lin,
    Observe,
    Received,
    Reg,
    Run,
    Send,
    Verdict,
    View,
)
from peer.algorithms.slots import Edge, Inbox, Label
from peer.algorithms.synchronous import Synchronous

X = Reg(LIVE)


@dataclass(frozen=True)
class Row:
    """What is there of a row of W; `total` is the sum of the weights, 1 where none is missing."""

    own: Coef
    others: tuple[tuple[Coef, Received], ...]
    total: Coef

    def mean(self, own: Reg, section: int = 0, clip: Coef | None = None) -> Lin:
        """The weighted mean of `own` and of that section of each message, held to `clip`."""
        others = ((weight, clipped(r.messages[section], own, clip)) for weight, r in self.others)
        return Lin(((self.own, own), *others), self.total)

    def distance(self, own: Reg) -> list[Effect]:
        """Consensus distance: the norm of `own` minus the mean of what came."""
        total = sum(weight for weight, _ in self.others)
        negated = ((-weight, received.messages[0]) for weight, received in self.others)
        lin = Lin(((total, own), *negated), total)
        return [Observe("consensus_distance", lin)] if self.others else []


class Gossip(Synchronous):
    """A method that mixes with all direct neighbours in every step."""

    kind = Kind.GOSSIP
    conserves = Conserved.MEAN

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self._counted = 1

    @abstractmethod
    def message(self) -> tuple[Lin, ...]:
        """What goes to every neighbour, one combination for each section."""

    @abstractmethod
    def mix(self, row: Row) -> list[Effect]:
        """Average with what came."""

    def period(self) -> int | None:
        return 1

    def expects(self, view: View, label: Label) -> tuple[Edge, ...]:  # noqa: ARG002
        return tuple((0, j) for j in view.members if j != view.me and view.mixing.get(j))

    def judge(self, view: View, head: Head) -> Verdict:
        if (head.tree, head.sender) not in self.expects(view, (head.step, head.round)):
            return Verdict.NOT_A_NEIGHBOUR
        return Verdict.ACCEPTED if head.count == 1 else Verdict.BAD_COUNT

    def outgoing(self, view: View) -> list[Send]:
        return [Send(j, self.head(1), self.message()) for _, j in self.expects(view, self._label)]

    def combine(self, view: View, inbox: Inbox) -> list[Effect]:
        row = _row(view, inbox)
        self._counted = 1 + len(row.others)
        return self.mix(row)

    def counted(self) -> Coef:
        return self._counted


def _row(view: View, inbox: Inbox) -> Row:
    others = tuple((view.mixing[j], message) for (_, j), message in inbox.items() if message)
    own = view.mixing.get(view.me, 0) if others else 1
    complete = len(others) == len(inbox)
    return Row(own, others, 1 if complete else own + sum(weight for weight, _ in others))
