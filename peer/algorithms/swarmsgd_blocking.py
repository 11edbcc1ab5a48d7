"""SwarmSGD, blocking: Algorithm 1 of Nadiradze et al. 2021.

    line 1  an edge (i, j) is drawn uniformly
    line 2  i and j take H_i and H_j local steps from their own models
    line 3  X_i, X_j <- (Q(X_i) + Q(X_j)) / 2        Q: the identity, or see `swarmsgd`

Without a central clock an edge is drawn by whoever is trained first: it calls a neighbour, each as
likely, and blocks. A neighbour that still trains holds the offer (OFFER: X_i) until it is trained
too, then answers it (REPLY: X_j); one with an offer of its own out, or holding another, is BUSY,
and the caller draws again. Both average and begin their next step, so every local step counts for
exactly one average, and the mean of all X moves by the updates alone. Who waits for whom cannot
form a cycle: a peer that is waited for is training, or about to answer.

The partner averages once its reply has arrived, the initiator when it has come; see `exchange`. A
peer that has finished still averages with those that call it.
"""

from __future__ import annotations

from peer.algorithms.core import LIVE, Effect, Lin, Message, Observe, Reg, Run, Set
from peer.algorithms.pairwise import Options, Pairwise, Phase
from peer.algorithms.script import Turn, Turns

X = Reg(LIVE)


class BlockingSwarmSGD(Pairwise):
    """Averages in pairs of peers that are both trained. `step` counts this peer's exchanges."""

    name = "swarmsgd"
    shared = X
    holds = True

    def __init__(self, run: Run, options: Options | None = None) -> None:
        self.options = options or Options()
        super().__init__(run, self.options)

    def begin(self) -> list[Effect]:
        return []

    def initiated(self, x_j: Message | None) -> list[Effect]:
        if not x_j:
            return []
        return [Observe("consensus_distance", Lin(((1, X), (-1, x_j)))), *self.visited(x_j)]

    def visited(self, x_i: Message) -> list[Effect]:
        return [Set(X, Lin(((1, self.own), (1, x_i)), 2))]  # line 3

    def turn_to_train(self, turns: Turns) -> Turn | None:
        return turns.next  # whoever calls

    def after_visit(self, now: float, *, complete: bool) -> list[Effect]:
        over = self.phase is Phase.FINISHED
        return [] if over else self._next_step(now, complete=complete)
