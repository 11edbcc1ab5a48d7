"""What is told of a simulated run: events as daemons announce them, and the mean of all models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from peer.algorithms.core import Algorithm, Averaged, PeerId
from peer.baseline import plain
from peer.training.trainer import Trainer
from relayswarm.config import RunConfig
from relayswarm.errors import ConfigError
from relayswarm.logs import finite

STEP_EVENTS = 20_000
"""Events of single steps beyond which only every k-th step is told, and the last."""

Listener = Callable[[dict[str, Any]], None]
"""Hears of each."""


def is_told(config: RunConfig, step: int) -> bool:
    """Whether the end of a step is an event: in large runs, writing a million of them would take
    longer than the run."""
    every = -(-config.peers * config.steps // STEP_EVENTS)
    return step % every == 0 or step == config.steps - 1


def step_event(
    peer: PeerId, effect: Averaged, loss: float, local_steps: int, seconds: float, bytes_sent: int
) -> dict[str, Any]:
    """What is told of a peer's step."""
    return {
        "event": "step",
        "peer": peer,
        "step": effect.step,
        "loss": finite(loss),
        "models_counted": int(effect.counted),
        "swarm_size": effect.swarm_size,
        "missed": effect.missed,
        "late": effect.late,
        "local_steps": local_steps,
        "compute_s": seconds,
        "wait_s": effect.waited_s,
        "bytes_sent": bytes_sent,
    }


def stood_still(peer: PeerId, algorithm: Algorithm) -> dict[str, Any]:
    """What is told of a peer that could not go on, and never will."""
    reason = getattr(algorithm, "paused_reason", None)
    words = f"stood still: {reason.value}" if reason else "stood still"
    return {"event": "peer_exited", "peer": peer, "exit_code": None, "stderr": [words]}


class MeanModels:
    """Measures the mean of all models after a step, as soon as every peer has done it."""

    def __init__(self, trainer: Trainer, every: int, peers: int, tell: Listener) -> None:
        if every and trainer.flat.shared_names is not None:
            problem = "leaves a part of the model with its peer, so there is no mean of all models"
            remedy = "leave --target out, or share the whole model"
            raise ConfigError("share.exclude", list(trainer.config.share.exclude), problem, remedy)
        self._trainer, self._every, self._peers, self._tell = trainer, every, peers, tell
        self._sums: dict[int, tuple[int, Tensor]] = {}  # by steps done: how many, and their sum

    def add(self, steps: int, vector: Tensor) -> None:
        """A peer's model after so many steps."""
        if not self._every or steps % self._every:
            return
        count, total = self._sums.get(steps, (0, torch.zeros_like(vector)))
        self._sums[steps] = (count + 1, total + vector)
        if count + 1 == self._peers:
            _, total = self._sums.pop(steps)
            metrics = plain(self._trainer.evaluate(total / self._peers))
            self._tell({"event": "mean_model", "step": steps, "metrics": metrics})
