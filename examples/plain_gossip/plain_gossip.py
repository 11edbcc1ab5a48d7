"""Averaging with direct neighbours, each weighted alike: an algorithm from outside.

    x_half = x + u                                              (local steps)
    x <- (1 - self_weight) mean of x_half_j over neighbours j + self_weight x_half

A message that does not come is left out of the mean. When steps begin and how long to wait is not
this page's business: `Synchronous` knows.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from peer.algorithms.core import (
    LIVE,
    Conserved,
    Effect,
    Head,
    Kind,
    Lin,
    OptionError,
    Reg,
    Run,
    Send,
    Set,
    Verdict,
    View,
)
from peer.algorithms.slots import Label
from peer.algorithms.synchronous import Edge, Inbox, Synchronous

X = Reg(LIVE)


@dataclass(frozen=True)
class PlainGossipOptions:
    """`self_weight`: how much of its own model a peer keeps, between 0 and 1."""

    self_weight: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.self_weight < 1:
            remedy = "set it to a number between 0 and 1"
            raise OptionError("self_weight", self.self_weight, "out of range", remedy)


class PlainGossip(Synchronous):
    """Gossip averaging with equal weights."""

    name = "plain-gossip"
    kind = Kind.GOSSIP
    conserves = Conserved.WEIGHT  # the mean too, but only where all have as many neighbours
    Options = PlainGossipOptions

    def __init__(self, run: Run, options: PlainGossipOptions) -> None:
        super().__init__(run)
        self._own = Fraction(options.self_weight)
        self._counted = 1

    def expects(self, view: View, label: Label) -> tuple[Edge, ...]:  # noqa: ARG002
        return tuple((0, j) for j in view.neighbours)

    def judge(self, view: View, head: Head) -> Verdict:
        known = (head.tree, head.sender) in self.expects(view, (head.step, head.round))
        return Verdict.ACCEPTED if known else Verdict.NOT_A_NEIGHBOUR

    def outgoing(self, view: View) -> list[Send]:
        return [Send(j, self.head(1), (Lin(((1, X),)),)) for j in view.neighbours]

    def combine(self, view: View, inbox: Inbox) -> list[Effect]:  # noqa: ARG002
        came = [received.messages[0] for received in inbox.values() if received]
        self._counted = 1 + len(came)
        if not came:
            return []
        each = (1 - self._own) / len(came)
        return [Set(X, Lin(((self._own, X), *((each, x_j) for x_j in came))))]

    def counted(self) -> int:
        return self._counted
