"""The trainer of a peer without data: it takes no steps, and its model follows the relay."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from torch import Tensor

from peer.training.learner import TrainResult
from peer.training.trainer import Trainer
from relayswarm.task import Measured, Site, TaskData


class NoData:
    """Of a peer that only forwards. It counts as one sample, which nobody asks for."""

    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return 1

    def batch(self, indices: Tensor) -> Any:
        raise AssertionError(f"samples {indices.tolist()} of a peer without data")

    def digest(self) -> str:
        return ""


class Forwarder(Trainer):
    """Holds the model, and neither trains nor measures it: the task's `data`, `loss` and `evaluate`
    are never called."""

    def data_of(self, site: Site) -> TaskData:  # noqa: ARG002
        return NoData()

    @property
    def samples(self) -> int:
        return 0

    def train(
        self,
        step: int,
        lr_scale: Any = 1,
        momentum: Tensor | None = None,  # noqa: ARG002
        local_steps: Iterable[int] | None = None,  # noqa: ARG002
        at: int | None = None,
    ) -> TrainResult:
        """No step."""
        return TrainResult(math.nan, self.lr(step if at is None else at) * float(lr_scale), 0.0, 0)

    def evaluate(
        self,
        vector: Tensor | None = None,  # noqa: ARG002
        site: Site | None = None,  # noqa: ARG002
    ) -> dict[str, Measured]:
        """Nothing to measure it on."""
        return {}
