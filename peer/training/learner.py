"""What a peer needs of whatever trains its model: a task's trainer, or a program's own loop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from peer.training.flat import FlatModel
from peer.training.movement import Movement
from relayswarm.config import RunConfig
from relayswarm.logs import finite
from relayswarm.task import Measured, Site


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a step's local training came to.

    `loss` is the mean over the local steps, nan as soon as one was not finite (training goes on).
    `lr` is the rate used, its scale included; `seconds` the time it took, `local_steps` how many
    there were.
    """

    loss: float
    lr: float
    seconds: float
    local_steps: int


@dataclass(frozen=True, slots=True)
class TrainerState:
    """Everything that makes training go on as if never stopped: tensors and JSON values."""

    tensors: Mapping[str, Tensor]
    values: Mapping[str, Any]


class Learner(ABC):
    """One peer's model, whoever trains it. Used from one thread at a time."""

    config: RunConfig
    site: Site
    device: torch.device
    flat: FlatModel
    movement: Movement | None = None

    @property
    def fingerprint(self) -> int:
        """64 bits that tell this model's layout from any other."""
        return self.flat.fingerprint

    @property
    def notes(self) -> Sequence[str]:
        """Remarks on the data, for the report."""
        return ()

    @property
    def samples(self) -> int:
        """Number of training samples; 0 where it is not known."""
        return 0

    def data_digest(self) -> str:
        """SHA-256 in hex of the shard's contents; empty where they are not known."""
        return ""

    def privacy_spent(self) -> dict[str, Any] | None:
        """What clipped and noised movements have given away so far; None if they are as they are.
        An epsilon is None without noise, or with noise that follows from the run's seed."""
        if self.movement is None:
            return None
        delta, spent = self.config.privacy.delta, self.movement.spent
        return {
            "releases": spent.releases,
            "delta": delta,
            "epsilon": finite(spent.epsilon(delta)),
            "epsilon_of_replacement": finite(spent.of_replacement(delta)),
        }

    @abstractmethod
    def evaluate(self) -> dict[str, Measured]:
        """Measure the live model."""

    @abstractmethod
    def state(self) -> TrainerState:
        """A copy of what makes training go on as if never stopped."""

    @abstractmethod
    def load_state(self, state: TrainerState) -> None:
        """Go on from `state`. Raises ConfigError if it is of another model or optimizer."""


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """In evaluation mode and without gradients; modes are put back as they were."""
    modes = {child: child.training for child in module.modules()}
    try:
        module.eval()
        with torch.no_grad():
            yield
    finally:
        for child, mode in modes.items():
            child.training = mode
