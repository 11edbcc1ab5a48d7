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

A lost message: see `gossip`. Corrections start over with a new epoch. Float buffers are mixed,
never corrected: a CORRECTION register is zero there, and it is only ever added to a model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from peer.algorithms.core import Effect, Lin, Reg, Role, Run, Set, View
from peer.algorithms.gossip import Gossip, Row, X

C = Reg("correction")


@dataclass(frozen=True)
class Options:
    """Both are for others to act on: whoever makes `View.mixing`, and the optimizer."""

    weights: Literal["metropolis", "uniform", "lazy", "auto"] = "auto"
    momentum: float | None = None


class D2(Gossip):
    """Gossip averaging with corrections for heterogeneous data."""

    name = "d2"
    sent_registers = 2

    def __init__(self, run: Run, options: Options | None = None) -> None:
        super().__init__(run)
        self.options = options or Options()

    @property
    def registers(self) -> Mapping[str, Role]:
        return {C.name: Role.CORRECTION}

    def begin_epoch(self, view: View) -> list[Effect]:  # noqa: ARG002
        return [Set(C, Lin(()))]  # input: c = 0

    def message(self) -> tuple[Lin, ...]:
        return (Lin(((1, X), (1, C))),)  # line 5

    def mix(self, row: Row) -> list[Effect]:
        return [
            Set(X, Lin(((1, X), (1, C)))),  # line 5
            *row.distance(X),
            Set(C, Lin(((1, C), (-1, X)))),  # -(x^(t) + u)
            Set(X, row.mean(X)),  # line 6
            Set(C, Lin(((1, C), (1, X)))),  # line 7
        ]
