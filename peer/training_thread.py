"""The thread in which a peer trains on its task."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from peer.algorithms.core import Train
from peer.checkpoints import Captured
from peer.local_training import LocalTraining, OnTrained, Training
from peer.training.learner import TrainResult
from peer.training.trainer import Trainer
from relayswarm.errors import OutOfMemoryError


class TrainingThread(LocalTraining):
    """One thread that takes one step after the other, and calls whoever waits for it."""

    def __init__(self, of: Training) -> None:
        super().__init__(of)
        assert isinstance(of.learner, Trainer), "a program takes its local steps itself"
        self._trainer = of.learner
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="training")

    def start(
        self, effect: Train, momentum: Tensor | None, captured: Captured | None, then: OnTrained
    ) -> None:
        self._thread.submit(self._step, effect, momentum, captured).add_done_callback(then)

    def close(self) -> None:
        self._hurry.set()
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _step(
        self, effect: Train, momentum: Tensor | None, captured: Captured | None
    ) -> TrainResult:
        self._prepare(effect.step, captured)
        local_steps = self._within_budget(effect) if effect.budget_s else effect.local_steps
        try:
            result = self._trainer.train(
                effect.step, effect.lr_scale, momentum, local_steps, effect.at
            )
        except torch.OutOfMemoryError as error:
            raise OutOfMemoryError(
                f"step {effect.step} took more memory than {self._trainer.device} has ({error}); "
                "lower data.batch_size, or choose another --device; the last checkpoint is whole"
            ) from error
        result = self._dawdle(result)
        self._conclude(effect.step)
        self.steps_done = effect.step + 1
        return result

    def _within_budget(self, effect: Train) -> Iterator[int]:
        """Local steps until the time is used up."""
        ends_at = time.perf_counter() + self._budget_s(effect)
        for number in effect.local_steps or ():
            yield number
            self._trainer.settle()
            if time.perf_counter() >= ends_at or self._hurry.is_set():
                return
