"""The fault plan: which messages of a run are lost, for experiments.

A pure function of the run's seed and the message's place in the run, so that daemons, each
deciding for itself, and the simulator lose the same messages, and a run can be replayed.
"""

from __future__ import annotations

from hashlib import blake2b

from relayswarm.config import FaultsConfig

_HASH_BYTES = 8
_HASH_RANGE = 2.0 ** (8 * _HASH_BYTES)


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
        return self.probability > 0 and self._uniform(step, round, sender, receiver)

    def _uniform(self, *place: int | str) -> bool:
        text = repr((self.seed, *place)).encode()
        draw = blake2b(text, digest_size=_HASH_BYTES, person=b"relayswarm drop").digest()
        return int.from_bytes(draw, "little") / _HASH_RANGE < self.probability
