"""Decentralized SGD: gossip averaging of Lian et al. 2017, in the form adapt, then combine.

    x_half = x + u                                       (local steps)
    x <- sum over j in N_i and i of W_ij x_half_j        see `gossip`

On data that differ between peers it converges to a neighbourhood of the optimum only, which grows
with the rate; the methods that correct for that are `d2` and `gradient_tracking`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from peer.algorithms.core import Effect, Lin, Run, Set
from peer.algorithms.gossip import Gossip, Row, X


@dataclass(frozen=True)
class Options:
    """For others to act on: whoever makes `View.mixing`."""

    weights: Literal["metropolis", "uniform", "lazy", "auto"] = "metropolis"


class DPSGD(Gossip):
    """Gossip averaging of models."""

    name = "dpsgd"
    clips = True

    def __init__(self, run: Run, options: Options | None = None) -> None:
        super().__init__(run)
        self.options = options or Options()

    def message(self) -> tuple[Lin, ...]:
        return (Lin(((1, X),)),)

    def mix(self, row: Row) -> list[Effect]:
        return [*row.distance(X), Set(X, row.mean(X, clip=self.run.clip))]
