"""The fault plan: which messages of a run are lost, for experiments.

A pure function of the run's seed and the message's place in the run, so that daemons, each
deciding for itself, and the simulator lose the same messages, and a run can be replayed.
"""

from __future__ import annotations

import math
from hashlib import blake2b

from relayswarm.config import FaultsConfig

_MANTISSA_BITS = 53  # more would round up to 1 now and then, and a sure loss would not be one


class FaultPlan:
    """Losses of one run: each message is lost with probability `faults.drop`, independently."""

    def __init__(self, faults: FaultsConfig, seed: int) -> None:
        self.probability = faults.drop
        self.announced = faults.loss == "known"
        self.seed = seed

    def drops(self, step: int, round: int, tree: int, sender: str, receiver: str) -> bool:
        """Is the message that `sender` sends to `receiver` in this step and round lost?

        The tree has no say: the halves of a model that cross the same edge on two trees are one
        message as far as an experiment is concerned, and are lost together.
        """
        del tree
        return self._uniform(step, round, sender, receiver) < self.probability

    def _uniform(self, *place: int | str) -> float:
        """A number in [0, 1) that depends on the seed and the place alone."""
        text = repr((self.seed, *place)).encode()
        draw = blake2b(text, digest_size=8, person=b"relayswarm drop").digest()
        return math.ldexp(int.from_bytes(draw, "little") >> (64 - _MANTISSA_BITS), -_MANTISSA_BITS)
