"""AD-PSGD: asynchronous decentralized parallel SGD of Lian et al. 2018.

    g = gradient at the present X_i, while others go on averaging with X_i
    avg = (X_i + X_j) / 2 with a random neighbour j
    X_j <- avg
    X_i <- avg - lr g                  g may be stale by then

These are the rules of `swarmsgd` (which see for X_i, X_hat_i and the exchange), whose analysis goes
back to this method, with one difference: a computation starts from X_i as it is when it starts. As
long as peers begin to compute as soon as they have averaged that is the same model. It differs
where a peer has to wait for its turn, as by a script.
"""

from __future__ import annotations

from peer.algorithms.core import Effect, Run, Set
from peer.algorithms.pairwise import Options
from peer.algorithms.script import Turn, Turns
from peer.algorithms.swarmsgd import OWN, START, SwarmSGD, X


class ADPSGD(SwarmSGD):
    """Averages in pairs; the gradient is taken at the copy that others average with."""

    name = "adpsgd"

    def __init__(self, run: Run, options: Options | None = None) -> None:
        super().__init__(run, options or Options())

    def before_training(self) -> list[Effect]:
        return [Set(X, OWN), Set(START, OWN)]

    def turn_to_train(self, turns: Turns) -> Turn | None:
        return turns.next if turns.mine else None
