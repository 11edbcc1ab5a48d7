"""The learning rate as a pure function of the run's progress.

A peer that jumps ahead or resumes therefore has the right rate, and a report can redraw it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

Schedule = Literal["constant", "cosine", "step"]

DECAY_AT = (0.75, 0.9)
"""Epochs 150 and 180 of 200, as table 6 of the RelaySGD paper has it."""

DECAY_FACTOR = 0.1


def learning_rate(
    base: float,
    schedule: Schedule,
    step: int,
    total_steps: int,
    warmup_steps: int = 0,
    decay_at: Sequence[float] = DECAY_AT,
    decay_factor: float = DECAY_FACTOR,
    warmup_from: float = 0.0,
) -> float:
    """Rate of `step` (0 to total_steps - 1; beyond, that of the last).

    During the first `warmup_steps` it rises linearly to `base`, from the part `warmup_from` of it
    (not included): base (from + (1 - from) (step + 1) / warmup_steps).
    Then `constant` stays there, and `cosine` falls as base (1 + cos(pi p)) / 2, where p is the
    part of the remaining steps that is over: `base` at first, nearly 0 at the last step. `step`
    multiplies by `decay_factor` at each of `decay_at`, parts of `total_steps`, warm-up included.
    """
    step = min(max(step, 0), max(total_steps - 1, 0))
    if step < warmup_steps:
        return base * (warmup_from + (1 - warmup_from) * (step + 1) / warmup_steps)
    if schedule == "constant":
        return base
    if schedule == "step":
        return base * decay_factor ** sum(step >= part * total_steps for part in decay_at)
    progress = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
    return base * 0.5 * (1.0 + math.cos(math.pi * progress))
