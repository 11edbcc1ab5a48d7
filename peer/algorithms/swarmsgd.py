"""SwarmSGD, non-blocking: Nadiradze et al. 2021, Lemma B.8 and section B.4 of the appendix.

The papers print no pseudo-code for this form; these rules follow from the definitions of S_t^i,
S_t^j and X_{t+1} in the lemma. Each peer i has a communication copy X_i, which exchanges read and
write, and a computation x that started from X_hat_i: the value of X_i when i was last the
*initiator*, at first the initial model. When its local steps are done, having moved x by

    delta_i = x - X_hat_i              (-lr times the sum of the gradients along the way)

it draws a partner j among its neighbours, each as likely, sends X_i (an OFFER), gets X_j (a REPLY):

    avg = (Q(X_i) + Q(X_j)) / 2
    X_j <- avg                         at the partner, whose own computation goes on untouched
    X_i <- avg + delta_i               at the initiator,
    X_hat_i <- X_i,  x <- X_i          which goes on from here

Q is the identity, or with `algorithm.quantize = "lattice"` rounds at random to the lattice of
`peer.codec.quantizer`, without bias. So the mean of all X moves by delta_i / n and by nothing else
but, with a quantizer, its rounding. A peer takes part in one exchange at
a time; what follows from that for calls that cross, fail or stay unanswered is in `exchange`, who
calls whom in `pairwise`. The partner averages once its reply is sent, the initiator once the reply
is complete: an exchange that breaks may change the partner alone, but never the initiator alone.

Float buffers have no delta, which could make a variance negative: they are averaged plainly. The
register of X_hat is a CORRECTION, zero there, and the initiator's formula is written so that it
says (x + X_j) / 2 where X_hat is missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from peer.algorithms import pairwise
from peer.algorithms.core import LIVE, Effect, Lin, Message, Observe, Reg, Role, Run, Set
from peer.algorithms.pairwise import Pairwise

X = Reg(LIVE)  # x, the model that computes
COPY = Reg("communication")  # X_i
START = Reg("start")  # X_hat_i
OWN = Lin(((1, COPY),))

PAUSE_S = pairwise.PAUSE_S


@dataclass(frozen=True)
class Options(pairwise.Options):
    """With `blocking` the method is that of `swarmsgd_blocking`."""

    blocking: bool = False


class SwarmSGD(Pairwise):
    """Averages in pairs, each peer in its own time. `step` counts the exchanges it initiated."""

    name = "swarmsgd"
    shared = COPY

    def __init__(self, run: Run, options: pairwise.Options | None = None) -> None:
        self.options = options or Options()
        super().__init__(run, self.options)

    @property
    def registers(self) -> Mapping[str, Role]:
        return {COPY.name: Role.MODEL, START.name: Role.CORRECTION, **super().registers}

    def begin(self) -> list[Effect]:
        x_0 = Lin(((1, X),))
        return [Set(COPY, x_0), Set(START, x_0)]

    def initiated(self, x_j: Message | None) -> list[Effect]:
        """Form X_i <- avg + delta_i, without a reply X_i <- X_i + delta_i."""
        return [*(self._average(x_j) if x_j else _alone()), Set(START, OWN), Set(X, OWN)]

    def visited(self, x_i: Message) -> list[Effect]:
        return [Set(COPY, Lin(((1, self.own), (1, x_i)), 2))]

    def _average(self, x_j: Message) -> list[Effect]:
        return [
            Observe("consensus_distance", Lin(((1, COPY), (-1, x_j)))),
            Set(START, Lin(((1, self.own), (1, X), (-2, START)), 2)),  # Q(X_i)/2 + x/2 - X_hat
            Set(COPY, Lin(((1, X), (1, x_j), (2, START)), 2)),  # avg + delta
        ]


def _alone() -> list[Effect]:
    return [
        Set(START, Lin(((1, COPY), (-1, START)))),
        Set(COPY, Lin(((1, X), (1, START)))),
    ]
