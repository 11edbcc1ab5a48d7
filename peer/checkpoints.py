"""When a peer writes its checkpoint, what goes into it, and what happens if it cannot.

With `deterministic = true` a checkpoint that is written before a step also has what the algorithm
keeps: its registers, its state, and the messages that it still relays. Those of all peers before
one step are then one state of the swarm, from which it goes on to the same bits (`resume`), if it
was stopped as a whole. Not with overlap, on the lattice, or in pairs: there more is under way.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from peer.algorithms.core import (
    LIVE,
    Algorithm,
    CoreState,
    Epoch,
    Head,
    Kind,
    Message,
    PeerId,
    Received,
    View,
)
from peer.metrics import PeerMetrics
from peer.registers import Registers
from peer.training import checkpoint
from peer.training.checkpoint import KEPT, Checkpoint
from peer.training.learner import Learner, TrainerState
from relayswarm import logs
from relayswarm.errors import ConfigError

log = logging.getLogger("relayswarm.peer")

CORE = "core"  # the key of what algorithms keep, among the values of a checkpoint
_HEAD = ("sender", "step", "round", "tree", "count", "weight")  # what is kept of a message's head


@dataclass(frozen=True, slots=True)
class Captured:
    """What an algorithm keeps at the beginning of a step."""

    tensors: Mapping[str, Tensor]
    values: Mapping[str, Any]


class Checkpoints:
    """The checkpoints of one peer in one directory; without a directory it keeps none."""

    def __init__(
        self, directory: Path | None, trainer: Learner, metrics: PeerMetrics, peer: PeerId
    ) -> None:
        self._directory = directory
        self._trainer = trainer
        self._metrics = metrics
        self._peer = peer
        self._run_id = trainer.config.run_id
        self._kept = KEPT
        config = trainer.config
        self._is_exact = config.deterministic and config.transport.wire_format != "lattice"

    def load(self) -> int:
        """Go on from the newest whole checkpoint; returns the steps it has done, 0 without one.

        Raises ConfigError if it is of another run, peer or model.
        """
        found = checkpoint.load_latest(self._directory) if self._directory else None
        if found is None:
            return 0
        self._take_up(found)
        text = f"resumed from the checkpoint of step {found.step}"
        logs.event(log, logging.INFO, "resumed", text, step=found.step)
        return found.step

    def resume_points(self) -> frozenset[tuple[int, int]]:
        """Step and layout of each checkpoint from which the whole swarm could go on."""
        found = checkpoint.load_all(self._directory) if self._directory and self._is_exact else []
        return frozenset(
            (one.step, layout)
            for one in found
            if (layout := self._layout(one)) is not None and one.run_id == self._run_id
        )

    def resume(self, view: View, algorithm: Algorithm, registers: Registers) -> None:
        """Go on, with all others, from the checkpoint of the view's step and layout; later ones are
        of a past that will not be, and are removed. Raises ConfigError if it is gone."""
        assert self._directory is not None, "there were checkpoints to offer"
        wanted = (view.effective_step, view.layout)
        found = [c for c in checkpoint.load_all(self._directory) if self._point(c) == wanted]
        if not found:
            raise ConfigError(
                "checkpoint directory",
                str(self._directory),
                f"has no checkpoint of step {view.effective_step} any more, from which all go on",
                "restore it from a copy, or start the run anew",
            )
        self._take_up(found[-1])
        try:
            algorithm.resume(_take_up_core(found[-1], view, registers))
        except (LookupError, TypeError, ValueError, RuntimeError) as error:
            raise ConfigError(
                "checkpoint",
                f"step {view.effective_step}",
                f"what it has of the algorithm is not this run's ({error})",
                "restore one from a copy, or start the run anew",
            ) from error
        checkpoint.forget_later(self._directory, found[-1])
        text = f"going on from step {view.effective_step} with all others, as if never stopped"
        logs.event(log, logging.INFO, "resumed", text, step=view.effective_step)

    def capture(
        self, step: int, algorithm: Algorithm, registers: Registers, view: View | None
    ) -> Captured | None:
        """What the algorithm keeps, if a checkpoint with it is due before this step. To be called
        while nothing else uses the registers."""
        if not (self._is_exact and self._is_due(step)):
            return None
        state = algorithm.state()
        if state is None or view is None:
            return None
        every = self._trainer.config.checkpoint.every
        self._kept = max(KEPT, 1 + -(-view.diameter // every))  # peers are so many steps apart
        tensors = {
            f"register/{name}": tensor.clone()
            for name, tensor in registers.tensors.items()
            if name != LIVE
        }
        for k, received in enumerate(state.received):
            tensors |= {f"received/{k}/{m.section}": m.payload for m in received.messages}
        values = {
            "state": state.values,
            "layout": view.layout,
            "shard": self._trainer.site.shard,
            "received": [_kept_head(received) for received in state.received],
        }
        return Captured(tensors, values)

    def save_if_due(self, step: int, captured: Captured | None = None) -> None:
        """Called before each step's training, while the model is x^(step)."""
        if self._is_due(step):
            self.save(step, captured)

    def save(self, step: int, captured: Captured | None = None, *, last: bool = False) -> None:
        """Write a checkpoint of a model that has done `step` steps; the `last` one leaves those
        from which all can go on.

        A disk that is full or read-only is counted and told, and training goes on: the checkpoint
        before is still whole.
        """
        if self._directory is None:
            return
        started = time.perf_counter()
        state = self._trainer.state()
        fingerprint = self._trainer.fingerprint
        core = captured or Captured({}, {})
        tensors = {**state.tensors, **core.tensors}
        values = {**state.values, **({CORE: core.values} if captured else {})}
        new = Checkpoint(self._run_id, self._peer, step, fingerprint, tensors, values)
        try:
            checkpoint.save(self._directory, new, self._kept + last)
        except ConfigError as error:
            self._metrics.checkpoint_failures.inc()
            text = f"checkpoint of step {step} not written: {error}"
            logs.event(log, logging.ERROR, "checkpoint_failed", text)
        else:
            self._metrics.checkpoint_seconds.observe(time.perf_counter() - started)

    def _is_due(self, step: int) -> bool:
        """In an exact run also before the first step: it may be stopped before the next."""
        every = self._trainer.config.checkpoint.every
        return bool(every) and step % every == 0 and (step > 0 or self._is_exact)

    def _take_up(self, found: Checkpoint) -> None:
        found.require(self._run_id, self._peer, self._trainer.fingerprint)
        self._trainer.load_state(TrainerState(found.tensors, found.values))

    def _point(self, found: Checkpoint) -> tuple[int, int | None]:
        return (found.step, self._layout(found))

    def _layout(self, found: Checkpoint) -> int | None:
        """That of a checkpoint with what the algorithm keeps, of this peer's data; else None."""
        core = found.values.get(CORE)
        if not isinstance(core, dict) or core.get("shard") != self._trainer.site.shard:
            return None
        layout = core.get("layout")
        return layout if isinstance(layout, int) and 0 <= layout < 2**64 else None


def _kept_head(received: Received) -> dict[str, Any]:
    values = {name: getattr(received.head, name) for name in _HEAD}
    return {**values, "kind": received.head.kind.value, "sections": len(received.messages)}


def _take_up_core(found: Checkpoint, view: View, registers: Registers) -> CoreState:
    """Fill the registers, and say what else the algorithm kept. Raises LookupError, TypeError,
    ValueError or RuntimeError if it is not that of this run."""
    core = found.values[CORE]
    for name, tensor in registers.tensors.items():
        if name != LIVE:
            kept = found.tensors[f"register/{name}"]
            if kept.shape != tensor.shape:
                raise ValueError(f"register {name} has shape {tuple(kept.shape)}")
            tensor.copy_(kept)
    return CoreState(
        core["state"],
        tuple(
            _received(found, k, entry, view, registers[LIVE])
            for k, entry in enumerate(core["received"])
        ),
    )


def _received(
    found: Checkpoint, k: int, entry: Mapping[str, Any], view: View, like: Tensor
) -> Received:
    kept = {name: entry[name] for name in _HEAD}
    incarnation = view.members[kept["sender"]]
    epoch: Epoch = view.epoch
    head = Head(**kept, kind=Kind(entry["kind"]), incarnation=incarnation, epoch=epoch)
    payloads = [found.tensors[f"received/{k}/{section}"] for section in range(entry["sections"])]
    if any(p.numel() > like.numel() or not torch.isfinite(p).all() for p in payloads):
        raise ValueError(f"message {k} is not one of this model")
    return Received(
        head,
        tuple(
            Message(head, section, p.to(like.device, like.dtype))
            for section, p in enumerate(payloads)
        ),
    )
