"""Gradient tracking: Algorithm 3 of Vogels et al. 2021 (appendix D.5), after Lorenzo and Scutari.

Each peer tracks how its own update differs from the average update, and corrects for it:

    line 3   u = -lr g                                   (local steps)
    line 4   x_half = x + u + c
    line 5   x <- sum over j of W_ij x_half_j            i itself included
    line 6   c <- sum over j of W_ij (c_j + u_j) - u

Line 6 is printed as c <- sum over j of W_ij (c_j - u_j), which does not converge: c must make up
for the own update, so that in a fixed point c_i is the mean of u minus u_i. With W doubly
stochastic the corrections sum to zero over the swarm, and the mean of all models moves by the mean
update alone. Model and correction travel in one message, as sections x + u + c and c + u: both come
or neither.

A lost message: see `gossip`. Corrections start over with a new epoch. Float buffers are mixed,
never corrected: a CORRECTION register is zero there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from peer.algorithms.core import Effect, Lin, Reg, Role, Run, Set, View
from peer.algorithms.gossip import Gossip, Row, X

C = Reg("correction")
PREVIOUS = Reg("previous")  # x^(t), and while a step is mixed c + u


@dataclass(frozen=True)
class Options:
    """For others to act on: whoever makes `View.mixing`."""

    weights: Literal["metropolis", "uniform", "lazy", "auto"] = "metropolis"


class GradientTracking(Gossip):
    """Gossip averaging of models and of corrections for heterogeneous data."""

    name = "gradient-tracking"
    sections = 2
    sent_registers = 3

    def __init__(self, run: Run, options: Options | None = None) -> None:
        super().__init__(run)
        self.options = options or Options()

    @property
    def registers(self) -> Mapping[str, Role]:
        return {C.name: Role.CORRECTION, PREVIOUS.name: Role.CORRECTION}

    def begin_epoch(self, view: View) -> list[Effect]:  # noqa: ARG002
        return [Set(C, Lin(()))]  # input: c = 0

    def before_training(self) -> list[Effect]:
        return [Set(PREVIOUS, Lin(((1, X),)))]

    def message(self) -> tuple[Lin, ...]:
        x_half = Lin(((1, X), (1, C)))  # line 4
        return (x_half, Lin(((1, X), (-1, PREVIOUS), (1, C))))

    def mix(self, row: Row) -> list[Effect]:
        tracked = row.mean(PREVIOUS, section=1)
        return [
            Set(X, Lin(((1, X), (1, C)))),  # line 4
            *row.distance(X),
            Set(PREVIOUS, Lin(((1, X), (-1, PREVIOUS)))),  # c + u
            Set(C, Lin(((1, C), (-1, PREVIOUS)))),  # -u
            Set(C, Lin((*tracked.terms, (tracked.divisor, C)), tracked.divisor)),  # line 6
            Set(X, row.mean(X)),  # line 5
        ]
