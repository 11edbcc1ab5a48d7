"""What a simulated peer learns with: the daemons' own trainer and registers, on virtual time."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from peer.algorithms.core import Head, Kind, Lin, Train, Trained
from peer.before_averaging import BeforeAveraging
from peer.codec import Format, default_format, roundtrip
from peer.codec.edges import Lattice
from peer.registers import Registers, evaluate
from peer.training.forwarder import Forwarder
from peer.training.learner import TrainResult
from peer.training.trainer import Trainer
from peer.wire_format import plain_format
from relayswarm.task import Measured

LOCAL_STEP_S = 1.0  # virtual


class FormedRegisters(Registers):
    """Registers of a simulated peer. A message leaves as soon as it is emitted, so it is formed
    then, and nobody reads late."""

    sent: Lattice | None = None  # how the last message was best written

    def outgoing(self, lins: tuple[Lin, ...], head: Head) -> tuple[Tensor, ...]:  # type: ignore[override]
        self.sent = self.lattice_of(lins)
        start, stop = self.span(head.tree if head.kind is Kind.RELAY else None)
        return tuple(evaluate(lin, self.tensors, start, stop, start) for lin in lins)

    def about_to_write(self, name: str) -> None:
        """Nothing to keep."""


class LearningBody:
    """A simulated peer's model, data and registers; a local step takes `LOCAL_STEP_S * slow_down`,
    of which a budget decides how many there are."""

    def __init__(
        self,
        trainer: Trainer,
        registers: FormedRegisters,
        slow_down: float,
        is_due: Callable[[int], bool] = lambda _: False,
    ) -> None:
        """`is_due` says at which steps there are evaluations."""
        self.trainer = trainer
        self._before = BeforeAveraging(trainer.config, is_due)
        self.vectors = registers
        self.wire_format = format_of(trainer)
        self.result: TrainResult | None = None
        self._slow_down = slow_down

    def train(self, effect: Train) -> Trained:
        momentum = self.vectors[effect.momentum.name] if effect.momentum else None
        numbers = effect.local_steps
        taken = numbers if numbers is None else numbers[: self.local_steps(effect)]
        self.result = self.trainer.train(effect.step, effect.lr_scale, momentum, taken, effect.at)
        self._before.trained(effect.step, self.trainer.evaluate)
        return Trained(effect.step, self.result.lr, self.result.local_steps)

    def evaluate(self, step: int) -> dict[str, Measured]:
        """Measure the live model for the evaluation of `step`."""
        return self._before.joined(step, self.trainer.evaluate())

    def local_steps(self, effect: Train) -> int:
        """How many are taken."""
        if isinstance(self.trainer, Forwarder):
            return 0
        if effect.budget_s:
            return max(1, math.ceil(effect.budget_s / (LOCAL_STEP_S * self._slow_down)))
        varied, usual = effect.local_steps, self.trainer.config.algorithm.local_steps
        return usual if varied is None else len(varied)

    def duration_s(self, effect: Train) -> float:
        return LOCAL_STEP_S * self.local_steps(effect) * self._slow_down

    def letter(self, head: Head, outgoing: tuple[Tensor, ...]) -> tuple[Head, tuple[Tensor, ...]]:
        return head, tuple(roundtrip(vector, self.wire_format) for vector in outgoing)


def format_of(trainer: Trainer) -> Format:
    """How models travel in this run, where they are not on the lattice."""
    return plain_format(trainer.config) or default_format(trainer.flat.vector.dtype)
