"""The thread in which a peer trains: its local steps, and what is due before them.

What belongs here: whatever needs the live model to itself. While a step is under way the vector
belongs to this thread, else to the daemon's core.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import torch
from torch import Tensor

from peer.algorithms.core import PeerId, Train
from peer.announce import Announcer
from peer.checkpoints import Checkpoints
from peer.metrics import PeerMetrics
from peer.training.trainer import Trainer, TrainResult
from relayswarm.errors import OutOfMemoryError
from relayswarm.task import Measured


class TrainingThread:
    """One thread that takes one step after the other.

    `steps_done` counts the steps that the live model has seen.
    """

    def __init__(
        self,
        peer: PeerId,
        trainer: Trainer,
        checkpoints: Checkpoints,
        metrics: PeerMetrics,
        announce: Announcer,
        measured: Callable[[int, Mapping[str, Measured]], None],
    ) -> None:
        """`measured(step, values)` hears of each evaluation on the way."""
        self.steps_done = 0
        self._peer = peer
        self._trainer = trainer
        self._checkpoints = checkpoints
        self._metrics = metrics
        self._announce = announce
        self._measured = measured
        self._slow_down = trainer.config.faults.slow.get(peer, 1.0)
        self._hurry = threading.Event()  # a straggler on purpose may stop waiting
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="training")

    def start(
        self, effect: Train, momentum: Tensor | None, then: Callable[[Future[TrainResult]], None]
    ) -> None:
        """Take the local steps of a step, and call `then` from this thread with what came of it."""
        self._thread.submit(self._step, effect, momentum).add_done_callback(then)

    def close(self) -> None:
        """Let the local steps under way come to their end; there are no more after that."""
        self._hurry.set()
        self._thread.shutdown(wait=True, cancel_futures=True)

    def evaluate(self, step: int) -> dict[str, Measured]:
        """Measure the live model; in this thread, or once training is over."""
        measured = self._trainer.evaluate()
        values = {name: m.value for name, m in measured.items()}
        self._metrics.evaluated(values)
        self._announce("evaluation", peer=self._peer, step=step, metrics=values)
        return measured

    def _step(self, effect: Train, momentum: Tensor | None) -> TrainResult:
        """Local steps; before them, while the model is x^(t), what is due at this step."""
        self._checkpoints.save_if_due(effect.step)
        every = self._trainer.config.evaluation.every
        if every and effect.step % every == 0 and effect.step > 0:
            self._measured(effect.step, self.evaluate(effect.step))
        local_steps = self._within_budget(effect) if effect.budget_s else effect.local_steps
        try:
            result = self._trainer.train(effect.step, effect.lr_scale, momentum, local_steps)
        except torch.OutOfMemoryError as error:
            raise OutOfMemoryError(
                f"step {effect.step} took more memory than {self._trainer.device} has ({error}); "
                "lower data.batch_size, or choose another --device; the last checkpoint is whole"
            ) from error
        result = self._dawdle(result)
        self.steps_done = effect.step + 1
        return result

    def _within_budget(self, effect: Train) -> Iterator[int]:
        """Local steps until the time is used up. Who is slow on purpose takes but a part of it, and
        dawdles for the rest."""
        ends_at = time.perf_counter() + effect.budget_s / self._slow_down
        for number in effect.local_steps or ():
            yield number
            self._trainer.settle()
            if time.perf_counter() >= ends_at or self._hurry.is_set():
                return

    def _dawdle(self, result: TrainResult) -> TrainResult:
        """Take as much longer as the fault plan says."""
        factor = self._slow_down
        if factor > 1 and not self._hurry.wait((factor - 1) * result.seconds):
            return replace(result, seconds=factor * result.seconds)
        return result
