"""RelaySGD/Grad: Algorithm 6 of Vogels et al. 2021 (appendix G). Relays updates, not models:

    line 3   u = -lr g                                   (local steps)
    line 5   m_{i->j} = u + sum over k in N_i without j of m_{k->i}   (of step t-1; see `relaying`)
    line 8   x <- x + (u + sum_j m_{j->i}) / n

or, of peers that do not weigh the same, w_i u and W in the place of u and n.

Every update reaches every model with weight 1/n in a finite number of steps: no energy is lost, so
no rate has to make up for it (appendix D.1). In return an update that is lost stays lost, and
models differ for good: where losses are to be expected `relaysgd` is the method. `updates_lost`
counts, for every step of an edge whose message was never used (lost, superseded, or skipped by a
peer that jumped ahead), the updates of the peers behind that edge.

Float buffers have no updates to relay: on them the register x^(t) is zero, so that they are summed
like models and divided by the count of those that came.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from peer.algorithms.core import LIVE, Coef, CoreState, Effect, Lin, Reg, Role, Run, Set, View
from peer.algorithms.relaying import Relaying, Terms
from peer.algorithms.slots import Edge, Inbox

X = Reg(LIVE)
PREVIOUS = Reg("previous")  # x^(t)


@dataclass(frozen=True)
class Options:
    overlap: bool = False


class RelaySGDGrad(Relaying):
    """Relays sums of updates along one tree, or along two that carry half the model each."""

    name = "relaysgd-grad"
    sent_registers = 2

    def __init__(self, run: Run, options: Options | None = None) -> None:
        self.options = options or Options()
        super().__init__(run, lag=int(self.options.overlap))
        self.updates_lost = 0
        self._last_used: dict[Edge, int] = {}  # step

    @property
    def registers(self) -> Mapping[str, Role]:
        return {PREVIOUS.name: Role.CORRECTION}

    def begin_epoch(self, view: View) -> list[Effect]:
        self._last_used = {}
        return super().begin_epoch(view)

    def kept(self) -> CoreState:
        last = [[*edge, step] for edge, step in self._last_used.items()]
        values = {"updates_lost": self.updates_lost, "last_used": last}
        return CoreState(values, super().kept().received)

    def restore(self, state: CoreState) -> None:
        super().restore(state)
        self.updates_lost = int(state.values["updates_lost"])
        self._last_used = {(tree, peer): step for tree, peer, step in state.values["last_used"]}

    def before_training(self) -> list[Effect]:
        return [Set(PREVIOUS, Lin(((1, X),)))]

    def period(self) -> int | None:
        return 1

    def own(self, view: View) -> Terms:
        w = view.weight
        return ((w, X), (-w, PREVIOUS)) if w else ()  # w u

    def combine(self, view: View, inbox: Inbox) -> list[Effect]:
        for edge, received in inbox.items():
            if received:
                self._used(view, edge, received.head.step)
        return super().combine(view, inbox)

    def _used(self, view: View, edge: Edge, step: int) -> None:
        tree, j = edge
        skipped = step - self._last_used.get(edge, view.effective_step - 1) - 1
        self.updates_lost += skipped * view.trees[tree][j]
        self._last_used[edge] = step

    def average(self, view: View, tree: int, w_bar: Coef) -> list[Effect]:
        """Line 8, by way of the mean of the updates that came, which is right for buffers."""
        total = view.total_weight
        if not w_bar:
            return []
        rest = Lin(((total, PREVIOUS), (w_bar - total, X)), total)
        return [
            Set(X, Lin((*self.own(view), *self.came(tree)), w_bar), tree),
            *([Set(PREVIOUS, rest, tree)] if w_bar != total else []),
            Set(X, Lin(((1, X), (1, PREVIOUS))), tree),
        ]

    def alone(self, view: View, tree: int) -> list[Effect]:
        return self.average(view, tree, view.weight)
