"""RelaySum for distributed mean estimation: Algorithm 5 of Vogels et al. 2021 (appendix F).

Each peer draws one sample in each step; all want the mean of all that were ever drawn:

    line 4   d = a sample                      (training leaves it in x)
    lines 5-6, 7  d is relayed                 (see `relaying`)
    line 9   y <- y + d + sum_j m_{j->i}
    line 10  s <- s + 1 + sum_j c_{j->i}
    line 11  x <- y / s                        the estimate

The listing draws a sample for each neighbour; once a step is meant. On two trees each half of the
coordinates has a count s of its own. Of peers that do not weigh the same, w_i d is relayed and s is
the sum of the weights. A lost sample is missing in sum and count, so the estimate
stays a mean. Sums live as long as the run, unless the number of trees changes.

For the mean of what is measured now, such as a metric, see `metric_relay`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from peer.algorithms.core import LIVE, Coef, CoreState, Effect, Lin, Reg, Role, Run, Set, View
from peer.algorithms.relaying import Relaying, Terms

X = Reg(LIVE)
Y = Reg("sum")


@dataclass(frozen=True)
class Options:
    overlap: bool = False


class RelaySum(Relaying):
    """Estimates a mean from samples that all peers draw."""

    name = "relaysum"

    def __init__(self, run: Run, options: Options | None = None) -> None:
        self.options = options or Options()
        super().__init__(run, lag=int(self.options.overlap))
        self.samples: list[Coef] = []  # s, for each tree

    @property
    def registers(self) -> Mapping[str, Role]:
        return {Y.name: Role.MODEL}

    def begin_epoch(self, view: View) -> list[Effect]:
        effects = super().begin_epoch(view)
        if len(self.samples) == len(view.trees):
            return effects
        self.samples = [0] * len(view.trees)
        return [*effects, Set(Y, Lin(()))]

    def kept(self) -> CoreState:
        samples = [s if isinstance(s, int) else float(s) for s in self.samples]
        return CoreState({"samples": samples}, super().kept().received)

    def restore(self, state: CoreState) -> None:
        super().restore(state)
        kept = state.values["samples"]
        self.samples = [s if isinstance(s, float) else int(s) for s in kept]

    def own(self, view: View) -> Terms:
        w = view.weight
        return ((w, X),) if w else ()  # w d

    def average(self, view: View, tree: int, w_bar: Coef) -> list[Effect]:
        self.samples[tree] += w_bar  # line 10
        if not self.samples[tree]:
            return []  # nothing of any weight has ever come
        return [
            Set(Y, Lin(((1, Y), *self.own(view), *self.came(tree))), tree),  # line 9
            Set(X, Lin(((1, Y),), self.samples[tree]), tree),  # line 11
        ]

    def alone(self, view: View, tree: int) -> list[Effect]:
        return self.average(view, tree, view.weight)
