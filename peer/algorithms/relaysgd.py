"""RelaySGD: Algorithm 1 of Vogels et al. 2021, with counters (lines 6 and 9) and equation 1.

On a tree, peer i sends its neighbour j the sum of its own model and of what came from all other
neighbours a step before, together with the number of models in it:

    line 3   x_half = x + u                                    (local steps)
    line 5   m_{i->j} = x_half + sum over k in N_i without j of m_{k->i}   (of step t-1)
    line 6   c_{i->j} = 1      + sum over k in N_i without j of c_{k->i}
    line 9   n_bar = 1 + sum over j of c_{j->i}
    line 10  x <- (x_half + sum_j m_{j->i}) / n_bar            fallback "counts"
    eq. 1    x <- (x_half + sum_j m_{j->i} + (n - n_bar) x) / n   fallback "previous"

Peers that do not weigh the same relay w_i x_half, and W and w_bar take the place of n and n_bar:

    line 10  x <- (w_i x_half + sum_j m_{j->i}) / w_bar
    eq. 1    x <- (w_i x_half + sum_j m_{j->i} + (W - w_bar) x) / W

How sums travel (lines 5 to 9), and what a lost message does, is in `relaying`, which other methods
share. A model that travelled h hops is max(h - 1, 0) steps old; two peers are exact all-reduce.
With `overlap` a message sent in step t is used in step t+1, the form of the paper's analysis: the
age is h, and the network has a whole step of computation to hide behind. On two trees each carries
half of the coordinates, with messages and counts of its own (section 3, "Spanning trees").
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from peer.algorithms.clipping import clipped
from peer.algorithms.core import (
    LIVE,
    Coef,
    Effect,
    Lin,
    Message,
    Observe,
    Received,
    Reg,
    Role,
    Run,
    Set,
    View,
)
from peer.algorithms.relaying import Relaying, Terms

X = Reg(LIVE)
PREVIOUS = Reg("previous")  # x^(t), the model before this step's update


@dataclass(frozen=True)
class Options:
    fallback: Literal["previous", "counts"] = "previous"
    overlap: bool = False


class RelaySGD(Relaying):
    """Relays sums of models along one tree, or along two that carry half the model each.

    Registers: the previous model, with fallback "previous".
    """

    name = "relaysgd"
    clips = True

    def __init__(self, run: Run, options: Options | None = None) -> None:
        self.options = options or Options()
        super().__init__(run, lag=int(self.options.overlap))

    @property
    def registers(self) -> Mapping[str, Role]:
        return {PREVIOUS.name: Role.MODEL} if self.options.fallback == "previous" else {}

    def before_training(self) -> list[Effect]:
        return [Set(PREVIOUS, Lin(((1, X),)))] if self.registers else []

    def lr_scale(self, view: View) -> Coef:
        """The tree's factor holds once sums are complete: after the first diameter steps."""
        return view.lr_scale if self.steps_in_epoch() >= view.diameter else 1

    def period(self) -> int | None:
        if not self.view:
            return None
        settled = self.view.lr_scale == 1 or self.steps_in_epoch() > self.view.diameter
        return 1 if settled else None

    def own(self, view: View) -> Terms:
        w = view.weight
        return ((w, X),) if w else ()  # w x_half

    def sum_in(self, received: Received) -> Message:
        if self.run.clip is None:
            return received.messages[0]
        weight = self._view.weight_of(received.head)
        return clipped(received.messages[0], X, self.run.clip, weight)

    def average(self, view: View, tree: int, w_bar: Coef) -> list[Effect]:
        means = [Set(X, mean, tree) for mean in self._mean(view, tree, w_bar)]
        return [*self._distance(view, tree, w_bar), *means]

    def _mean(self, view: View, tree: int, w_bar: Coef) -> list[Lin]:
        """Nothing, where no model that is known weighs anything: x stays as it is."""
        terms, total = (*self.own(view), *self.came(tree)), view.total_weight
        if self.options.fallback == "counts":
            return [Lin(terms, divisor=w_bar)] if w_bar else []  # line 10 as printed
        missing = total - w_bar
        return [Lin((*terms, (missing, PREVIOUS)) if missing else terms, total)] if total else []

    def _distance(self, view: View, tree: int, w_bar: Coef) -> list[Effect]:
        """Consensus distance ||x_half - sum_j m_j / sum_j c_j||."""
        weight = self.weight_that_came(tree) if view.weights else w_bar - 1
        if weight == 0:
            return []
        negated = tuple((-coef, m) for coef, m in self.came(tree))
        return [Observe("consensus_distance", Lin(((weight, X), *negated), weight), tree)]
