"""D2 with momentum: Algorithm 2 of Vogels et al. 2021 (appendix D.4), after Tang et al. 2018.

Gossip averaging that corrects for what makes data of different peers differ:

    lines 3-4  u = -lr (g + a m), m = a m + g          (the optimizer: Nesterov momentum a)
    line 5     x_half = x + u + c
    line 6     x <- sum over j of W_ij x_half_j        i itself included
    line 7     c <- x^(t+1) - x^(t) - u

W is the mixing matrix (`View.mixing` is this peer's row), which must have no eigenvalue below
-1/3; c is the correction, zero at first. The live register holds x + u after training, so line 7
needs no copy of x^(t): c <- x^(t+1) - (x^(t) + u). Corrections are in units of updates, so the rate
may vary; with W symmetric they sum to zero over the swarm, and the mean of all models moves by the
mean update alone.

A lost message: the weights of what is there, the own included, are rescaled to sum to one.
Corrections start over with a new epoch. Float buffers are mixed, never corrected: a CORRECTION
register is zero there, and it is only ever added to a model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from peer.algorithms.core import (
    LIVE,
    Coef,
    Effect,
    Head,
    Kind,
    Lin,
    Message,
    Observe,
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
C = Reg("correction")


@dataclass(frozen=True)
class Options:
    """Both are for others to act on: whoever makes `View.mixing`, and the optimizer."""

    weights: Literal["metropolis", "uniform", "lazy", "auto"] = "auto"
    momentum: float | None = None


class D2(Synchronous):
    """Gossip averaging with corrections for heterogeneous data."""

    name = "d2"
    kind = Kind.GOSSIP

    def __init__(self, run: Run, options: Options | None = None) -> None:
        super().__init__(run)
        self.options = options or Options()
        self._counted = 1

    @property
    def registers(self) -> Mapping[str, Role]:
        return {C.name: Role.CORRECTION}

    def begin_epoch(self, view: View) -> list[Effect]:  # noqa: ARG002
        return [Set(C, Lin(()))]  # input: c = 0

    def expects(self, view: View, label: Label) -> tuple[Edge, ...]:  # noqa: ARG002
        return tuple((0, j) for j in view.members if j != view.me and view.mixing.get(j))

    def judge(self, view: View, head: Head) -> Verdict:
        known = (head.tree, head.sender) in self.expects(view, (head.step, head.round))
        return Verdict.ACCEPTED if known else Verdict.NOT_A_NEIGHBOUR

    def outgoing(self, view: View) -> list[Send]:
        x_half = Lin(((1, X), (1, C)))  # line 5
        return [Send(j, self.head(1), (x_half,)) for _, j in self.expects(view, self._label)]

    def combine(self, view: View, inbox: Inbox) -> list[Effect]:
        received = {j: message.messages[0] for (_, j), message in inbox.items() if message}
        self._counted = 1 + len(received)
        others = tuple((view.mixing[j], message) for j, message in received.items())
        return [
            Set(X, Lin(((1, X), (1, C)))),  # line 5
            *_distance(others),
            Set(C, Lin(((1, C), (-1, X)))),  # -(x^(t) + u)
            Set(X, _mean(view, others, complete=len(others) == len(inbox))),  # line 6
            Set(C, Lin(((1, C), (1, X)))),  # line 7
        ]

    def counted(self) -> Coef:
        return self._counted


def _mean(view: View, others: tuple[tuple[Coef, Message], ...], *, complete: bool) -> Lin:
    """Line 6. A complete row of W is used as it is; what is left of another is rescaled."""
    own = view.mixing.get(view.me, 0) if others else 1
    return Lin(((own, X), *others), 1 if complete else own + sum(weight for weight, _ in others))


def _distance(others: tuple[tuple[Coef, Message], ...]) -> list[Effect]:
    """Consensus distance ||x_half - mean of what came||."""
    total = sum(weight for weight, _ in others)
    negated = tuple((-weight, message) for weight, message in others)
    return [Observe("consensus_distance", Lin(((total, X), *negated), total))] if others else []
