"""Stochastic gradient push on the time-varying exponential graph: Algorithm 4 of Vogels et al. 2021
(appendix D.6), after Assran et al. 2019, with the push-sum weights of the latter.

n = 2^k peers in a circle; t' counts communication rounds over the whole run, two in each step:

    line 3   x_half = x + u                            (local steps)
    line 5   o = 2^(t' mod k)
    line 6   send x_half to peer i - o
    line 7   x_half <- (x_half + x_half of peer i + o) / 2
    line 8   t' <- t' + 1                              (lines 5 to 8 twice)

Each model x has a weight w, 1 at first. Peer i keeps half of the mass (x w, w) and sends the other
half; what comes in is added, and the model is the mass divided by its weight:

    x <- (w_i/2 x_i + w_j/2 x_j) / (w_i/2 + w_j/2),    w <- w_i/2 + w_j/2

Without losses w stays 1 and this is line 7. A lost message loses its mass in both, so the result
stays a proper average. A message carries x_j and, in its header, w_j/2: the product would lose
precision, or vanish in half precision, once a run of losses has made w small. Weights start over
with a new epoch; where n is no power of two the method pauses.

Messages go one way over an edge, so a sender may get ahead of its receiver, but not by k rounds: in
these the graph connects everyone with everyone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from peer.algorithms.core import (
    LIVE,
    Coef,
    Conserved,
    CoreState,
    Effect,
    Head,
    Kind,
    Lin,
    Message,
    Observe,
    OptionError,
    PeerId,
    Reg,
    Run,
    Send,
    Set,
    Verdict,
    View,
)
from peer.algorithms.slots import Edge, Inbox, Label
from peer.algorithms.synchronous import Synchronous, Unfit

X = Reg(LIVE)

SMALLEST_WEIGHT = 2.0**-1000  # of a peer that hears of nobody: never nothing, to divide by


@dataclass(frozen=True)
class Options:
    """`rounds_per_step`: communication rounds after each step's training, 1 or 2. Two, as in the
    paper, use as much bandwidth as RelaySGD, and mix faster. Raises OptionError."""

    rounds_per_step: Literal[1, 2] = 2

    def __post_init__(self) -> None:
        if self.rounds_per_step not in (1, 2):
            problem, remedy = "not a number of rounds", "set it to 1 or 2"
            raise OptionError("rounds_per_step", self.rounds_per_step, problem, remedy)


class SGP(Synchronous):
    """Push-sum averaging, each round with one peer at a distance that changes."""

    name = "sgp"
    kind = Kind.PUSH
    conserves = Conserved.MEAN

    def __init__(self, run: Run, options: Options | None = None) -> None:
        super().__init__(run)
        self.options = options or Options()
        self.rounds = self.options.rounds_per_step
        self.weight = 1.0  # w
        self._counted = 1

    def unfit(self, view: View) -> Unfit | None:
        return None if view.n.bit_count() == 1 else Unfit.NOT_A_POWER_OF_TWO

    def left_behind(self, view: View, label: Label) -> bool:
        return self._round_of(label) >= self._round_of((self._step, 0)) + _k(view)

    def begin_epoch(self, view: View) -> list[Effect]:  # noqa: ARG002
        self.weight = 1.0
        return []

    def kept(self) -> CoreState:
        return CoreState({"weight": self.weight})

    def restore(self, state: CoreState) -> None:
        self.weight = float(state.values["weight"])

    def period(self) -> int | None:
        k = max(_k(self.view), 1) if self.view else 1
        return math.lcm(k, self.rounds) // self.rounds  # in steps, while rounds cycle through k

    def expects(self, view: View, label: Label) -> tuple[Edge, ...]:
        return tuple((0, j) for j in _peer_at(view, self._offset(view, label)))

    def judge(self, view: View, head: Head) -> Verdict:
        label = (head.step, head.round)
        if (head.tree, head.sender) not in self.expects(view, label):
            return Verdict.NOT_A_NEIGHBOUR
        fits = head.count == 1 and 0 < head.weight <= view.n
        return Verdict.ACCEPTED if fits else Verdict.BAD_COUNT

    def outgoing(self, view: View) -> list[Send]:
        head = self.head(1, weight=self.weight / 2)
        to = _peer_at(view, -self._offset(view, self._label))
        return [Send(j, head, (Lin(((1, X),)),)) for j in to]  # line 6

    def combine(self, view: View, inbox: Inbox) -> list[Effect]:  # noqa: ARG002
        received = [message for message in inbox.values() if message]
        self._counted = 1 + len(received)
        if not inbox:
            return []  # alone
        kept = max(self.weight / 2, SMALLEST_WEIGHT)
        self.weight = kept + sum(float(message.head.weight) for message in received)
        if not received:
            return []  # x = (x w/2) / (w/2)
        (message,) = received
        x_j = message.messages[0]
        return [
            Observe("consensus_distance", Lin(((1, X), (-1, x_j)))),
            Set(X, _ratio(kept, float(message.head.weight), x_j)),  # line 7
        ]

    def counted(self) -> Coef:
        return self._counted

    def _round_of(self, label: Label) -> int:
        """t'."""
        step, round_ = label
        return self.rounds * step + round_

    def _offset(self, view: View, label: Label) -> int:
        """Line 5; 0 where there is nobody else, or no power of two."""
        k = _k(view)
        return 2 ** (self._round_of(label) % k) if k and view.n == 2**k else 0


def _ratio(kept: float, came: float, x_j: Message) -> Lin:
    """(kept x + came x_j) / (kept + came), scaled by a power of two so that tiny weights do no harm
    in single precision."""
    scale = 2.0 ** (1 - math.frexp(kept + came)[1])  # the divisor is in [1, 2), without losses 1
    return Lin(((kept * scale, X), (came * scale, x_j)), (kept + came) * scale)


def _k(view: View) -> int:
    return view.n.bit_length() - 1


def _peer_at(view: View, offset: int) -> tuple[PeerId, ...]:
    """The peer that stands so far along the circle from here, unless that is this one."""
    circle = tuple(view.members)
    return (circle[(circle.index(view.me) + offset) % view.n],) if offset else ()
