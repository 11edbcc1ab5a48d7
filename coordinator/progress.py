"""How far members are, by their own word, and the step at which all can still switch together."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median_low

MARGIN_S = 0.5
"""From an election to the moment when the slowest peer has its view, generously."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a member was, by its own word, and how fast it was going.

    `rate` (steps per second) is measured between reports at least half a renewal apart, so that
    two reports in quick succession do not make a wild guess; None until there are two.
    """

    step: int
    at: float
    rate: float | None = None
    since_step: int = 0
    since: float = 0.0

    @classmethod
    def begin(cls, step: int, now: float) -> Progress:
        """The first report."""
        return cls(step, now, None, step, now)

    def report(self, step: int, now: float, window_s: float) -> Progress:
        """The next report."""
        if now - self.since < window_s:
            return Progress(step, now, self.rate, self.since_step, self.since)
        rate = max(0.0, (step - self.since_step) / (now - self.since))
        return Progress(step, now, rate, step, now)


def effective_step(reports: Iterable[Progress], now: float) -> int:
    """The step at which all peers can still switch together to a new topology.

    max over peers of (step + ceil(rate * (now - at + MARGIN_S))) + 1, where a peer reported `step`
    at time `at`, and `rate` (steps per second) is the (lower) median of what peers were seen going
    at: synchronous peers are equally fast, and one that has just jumped ahead to where the others
    are is not fast at all. Too low, and fast peers switch late, losing the messages of
    a step or two; too high, and the swarm trains on in the old topology, in which a peer may be
    missing. A swarm that stands still, waiting for a dead peer, has rate 0: the very next step.
    """
    reports = list(reports)
    rates = [r.rate for r in reports if r.rate is not None]
    rate = median_low(rates) if rates else 0.0
    return max(r.step + math.ceil(rate * (now - r.at + MARGIN_S)) for r in reports) + 1
