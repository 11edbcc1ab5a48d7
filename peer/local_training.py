"""Local training: a peer's local steps, and what is due before them.

What belongs here: what holds for a thread of the peer's own (`peer.training_thread`) and for a
program's loop (`peer.ownloop`). While a step is under way the model belongs to whoever takes it,
else to the daemon's core.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import TypeAlias

from torch import Tensor

from peer.algorithms.core import PeerId, Train
from peer.announce import Announcer
from peer.before_averaging import BeforeAveraging
from peer.checkpoints import Captured, Checkpoints
from peer.metrics import PeerMetrics
from peer.swarm_metrics import SwarmMetrics
from peer.training.learner import Learner, TrainResult
from relayswarm.task import Measured

OnTrained: TypeAlias = Callable[[Future[TrainResult]], None]


@dataclass(frozen=True)
class Training:
    """Whose local training it is, and what it works with. `swarm` says when evaluations are due,
    and hears of each on the way."""

    peer: PeerId
    learner: Learner
    checkpoints: Checkpoints
    metrics: PeerMetrics
    announce: Announcer
    swarm: SwarmMetrics


class LocalTraining(ABC):
    """Takes one step after the other.

    `steps_done` counts the steps that the live model has seen.
    """

    def __init__(self, of: Training) -> None:
        config = of.learner.config
        self.steps_done = 0
        self._of = of
        self._before = BeforeAveraging(config, of.swarm.is_due)
        self._slow_down = config.faults.slow.get(of.peer, 1.0)
        self._hurry = threading.Event()  # a straggler on purpose may stop waiting

    @abstractmethod
    def start(
        self, effect: Train, momentum: Tensor | None, captured: Captured | None, then: OnTrained
    ) -> None:
        """Have the local steps of a step taken, and call `then` with what came of it. `captured`
        goes into the checkpoint that is due before it, if one is."""

    @abstractmethod
    def close(self) -> None:
        """Let the local steps under way come to their end; there are no more after that."""

    def release(self) -> None:  # noqa: B027
        """The daemon needs the model no more; a thread of its own does not care."""

    def evaluate(self, step: int) -> dict[str, Measured]:
        """Measure the live model, in the thread that takes the local steps."""
        measured = self._before.joined(step, self._of.learner.evaluate())
        values = {name: m.value for name, m in measured.items()}
        self._of.metrics.evaluated(values)
        self._of.announce("evaluation", peer=self._of.peer, step=step, metrics=values)
        return measured

    def evaluate_last(self, step: int) -> dict[str, Measured]:
        """Measure the model once training is over."""
        return self.evaluate(step)

    def _prepare(self, step: int, captured: Captured | None) -> None:
        """What is due before a step, while the model is x^(t)."""
        self._of.checkpoints.save_if_due(step, captured)
        every = self._of.learner.config.evaluation.every
        if every and step % every == 0 and step > 0:
            self._of.swarm.measured(step, self.evaluate(step))

    def _conclude(self, step: int) -> None:
        """What is due after the local steps of a step, while the model is not averaged yet."""
        self._before.trained(step, self._of.learner.evaluate)

    def _budget_s(self, effect: Train) -> float:
        """How long local steps go on. Who is slow on purpose takes but a part of the time, and
        dawdles for the rest."""
        return effect.budget_s / self._slow_down

    def _dawdle(self, result: TrainResult) -> TrainResult:
        """Take as much longer as the fault plan says."""
        factor = self._slow_down
        if factor > 1 and not self._hurry.wait((factor - 1) * result.seconds):
            return replace(result, seconds=factor * result.seconds)
        return result


MakeTraining: TypeAlias = Callable[[Training], LocalTraining]
"""Makes the local training of a daemon."""
