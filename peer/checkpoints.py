"""When a peer writes its checkpoint, what goes into it, and what happens if it cannot."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from peer.algorithms.core import PeerId
from peer.metrics import PeerMetrics
from peer.training import checkpoint
from peer.training.checkpoint import Checkpoint
from peer.training.trainer import Trainer, TrainerState
from relayswarm import logs
from relayswarm.errors import ConfigError

log = logging.getLogger("relayswarm.peer")


class Checkpoints:
    """The checkpoints of one peer in one directory; without a directory it keeps none."""

    def __init__(
        self, directory: Path | None, trainer: Trainer, metrics: PeerMetrics, peer: PeerId
    ) -> None:
        self._directory = directory
        self._trainer = trainer
        self._metrics = metrics
        self._peer = peer
        self._run_id = trainer.config.run_id

    def load(self) -> int:
        """Go on from the newest whole checkpoint; returns the steps it has done, 0 without one.

        Raises ConfigError if it is of another run, peer or model.
        """
        found = checkpoint.load_latest(self._directory) if self._directory else None
        if found is None:
            return 0
        found.require(self._run_id, self._peer, self._trainer.fingerprint)
        self._trainer.load_state(TrainerState(found.tensors, found.values))
        text = f"resumed from the checkpoint of step {found.step}"
        logs.event(log, logging.INFO, "resumed", text, step=found.step)
        return found.step

    def save_if_due(self, step: int) -> None:
        """Called before each step's training, while the model is x^(step)."""
        every = self._trainer.config.checkpoint.every
        if every and step % every == 0 and step > 0:
            self.save(step)

    def save(self, step: int) -> None:
        """Write a checkpoint of a model that has done `step` steps.

        A disk that is full or read-only is counted and told, and training goes on: the checkpoint
        before is still whole.
        """
        if self._directory is None:
            return
        started = time.perf_counter()
        state = self._trainer.state()
        fingerprint = self._trainer.fingerprint
        new = Checkpoint(self._run_id, self._peer, step, fingerprint, state.tensors, state.values)
        try:
            checkpoint.save(self._directory, new)
        except ConfigError as error:
            self._metrics.checkpoint_failures.inc()
            text = f"checkpoint of step {step} not written: {error}"
            logs.event(log, logging.ERROR, "checkpoint_failed", text)
        else:
            self._metrics.checkpoint_seconds.observe(time.perf_counter() - started)
