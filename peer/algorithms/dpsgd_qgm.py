"""Decentralized SGD or Adam with quasi-global momentum: Lin et al. 2021; of SGD the Nesterov form.

Local momentum of peers with different data points in different directions. Here the momentum buffer
m is kept from differences of averaged models, which are nearly the same everywhere:

    u = -lr (g + b (b m + g))                            (the trainer: m is read, not changed)
    x <- sum over j in N_i and i of W_ij (x + u)_j       see `gossip`
    m <- b m + (1 - b) (x^(t) - x^(t+1)) / lr

g is the gradient, b the momentum, m zero at first. With H local steps m comes to H gradients and
works H times in each step: it stays bounded only while H b^2 < 1 (H = 1: any b).

With `optimizer.name = "adam"` b is 0, so that m is d = (x^(t) - x^(t+1)) / lr, of which the trainer
keeps two moments (`peer.training.optimizer`: `gather_movement`, then `quasi_global_adam_step`):

    d^ = d / |d|;  m <- b1 m + (1 - b1) d^;  v <- b2 v + (1 - b2) d^^2
    u = -lr m' / (sqrt(v') + 1e-8)   with m' and v' of b1 m + (1 - b1) g and b2 v + (1 - b2) g^2

This is QG-DAdam of Lin et al. as their published code has it (`decentralized_qg_adam.py`): |d| is
of the whole model, 1e-8 added to it, m' and v' have Adam's bias correction, and weight decay is
part of g. But for one factor: there g enters the first moment whole, b1 m + g; here as in Adam, and
as in the two variants beside that file. Of our choice: d is taken in when the next step begins,
which comes to the same; H local steps read the same m and v; a peer that joins begins with m = v =
0 and counts its own steps; parameters that stay with their peer are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from peer.algorithms.core import Coef, Effect, Lin, Reg, Role, Run, Set
from peer.algorithms.gossip import Gossip, Row, X

M = Reg("momentum")
PREVIOUS = Reg("previous")  # x^(t)


@dataclass(frozen=True)
class Options:
    """`weights` is for whoever makes `View.mixing`; b is for this file and for the trainer, and 0
    with Adam."""

    weights: Literal["metropolis", "uniform", "lazy", "auto"] = "metropolis"
    momentum: Coef = 0.9


class DPSGDwithQGM(Gossip):
    """Gossip averaging of models; local steps use a momentum that follows their average."""

    name = "dpsgd-qgm"

    def __init__(self, run: Run, options: Options | None = None) -> None:
        super().__init__(run)
        self.options = options or Options()

    @property
    def registers(self) -> Mapping[str, Role]:
        return {M.name: Role.CORRECTION, PREVIOUS.name: Role.CORRECTION}

    def momentum(self) -> Reg:
        return M

    def before_training(self) -> list[Effect]:
        return [Set(PREVIOUS, Lin(((1, X),)))]

    def message(self) -> tuple[Lin, ...]:
        return (Lin(((1, X),)),)

    def mix(self, row: Row) -> list[Effect]:
        return [*row.distance(X), Set(X, row.mean(X)), *self._follow()]

    def _follow(self) -> list[Effect]:
        """The last line; a step at rate zero says nothing about the gradient, nor what the one
        before it said a second time."""
        b, lr = self.options.momentum, self.lr
        terms = ((b * lr, M), (1 - b, PREVIOUS), (b - 1, X))
        if not lr:
            return [] if b else [Set(M, Lin(()))]
        return [Set(M, Lin(terms, lr))]
