"""The learning rate as a pure function of the step.

A peer that jumps ahead or resumes therefore has the right rate, and a report can redraw it.
"""

from __future__ import annotations

import math
from typing import Literal

Schedule = Literal["constant", "cosine"]


def learning_rate(
    base: float, schedule: Schedule, step: int, total_steps: int, warmup_steps: int = 0
) -> float:
    """Rate of `step` (0 to total_steps - 1; beyond, that of the last).

    During the first `warmup_steps` it rises linearly to `base`: base (step + 1) / warmup_steps.
    Then `constant` stays there, and `cosine` falls as base (1 + cos(pi p)) / 2, where p is the
    part of the remaining steps that is over: `base` at first, nearly 0 at the last step.
    """
    step = min(max(step, 0), max(total_steps - 1, 0))
    if step < warmup_steps:
        return base * (step + 1) / warmup_steps
    if schedule == "constant":
        return base
    progress = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
    return base * 0.5 * (1.0 + math.cos(math.pi * progress))
