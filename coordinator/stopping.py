"""When a run is to end before its last step: by time, or when the swarm's metric gets no better.

What belongs here: the rule, as a function of what members told and of the time. Nothing here reads
a clock. All members know the swarm's mean of an evaluation sooner or later, so each is listened to
by itself, and the run ends by the metric once more than half of the members' words say so: with
three or more, one that lies can neither end the run nor keep it from its end.

Of one member's words: a mean counts once all members are in it, or once a later evaluation is
known; of one evaluation the mean of most peers counts. After `patience` evaluations in a row that
were not better than the best before them, it says that the run is to end.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

from coordinator.members import SwarmMetrics


@dataclass(frozen=True, slots=True)
class StopRule:
    """What the run config says; None: not by that."""

    max_s: float | None = None
    metric: str | None = None
    patience: int = 1


def higher_is_better(metric: str) -> bool:
    """Accuracies are better when higher; every other metric is taken for a loss."""
    return metric.endswith("accuracy")


class Word:
    """What one member tells of the swarm's metric, evaluation after evaluation."""

    def __init__(self, metric: str) -> None:
        self.worse = 0  # evaluations since the best
        self._metric = metric
        self._open: SwarmMetrics | None = None  # the newest evaluation; more may come of it
        self._closed = -1  # step of the last one that was judged
        self._best: float | None = None

    def heard(self, swarm: SwarmMetrics, members: int) -> None:
        """It knows this of the swarm's metrics; there are so many members."""
        if swarm.step <= self._closed:
            return
        known = self._open
        if known is not None and swarm.step > known.step:
            self._judge(known)
            known = None
        if known is None or (swarm.step == known.step and swarm.peers > known.peers):
            self._open = known = swarm
        if known.peers >= members:
            self._judge(known)

    def _judge(self, swarm: SwarmMetrics) -> None:
        self._open, self._closed = None, swarm.step
        means = [one.mean for one in swarm.metrics if one.name == self._metric]
        if not means or not math.isfinite(means[0]):
            self.worse += 1
            return
        sign = 1.0 if higher_is_better(self._metric) else -1.0
        if self._best is None or sign * means[0] > self._best:
            self._best, self.worse = sign * means[0], 0
        else:
            self.worse += 1


class Stopping:
    """Follows a run until it is to end. `began_at`: when it began, on the clock that `due` is asked
    with, or None."""

    def __init__(self, rule: StopRule, began_at: float | None = None) -> None:
        self.rule = rule
        self.began_at = began_at
        self._words: dict[str, Word] = {}

    def heard(self, peer: str, swarm: SwarmMetrics, members: int) -> None:
        """That member knows this of the swarm's metrics; so many members measure them."""
        if self.rule.metric is not None:
            self._words.setdefault(peer, Word(self.rule.metric)).heard(swarm, members)

    def due(self, now: float, members: Collection[str]) -> str | None:
        """Why the run is to end now, or None."""
        rule = self.rule
        if rule.max_s is not None and self.began_at is not None:
            hours = rule.max_s / 3600
            if now >= self.began_at + rule.max_s:
                return f"stop.max_hours = {hours:g}: that time is over"
        if rule.metric is None:
            return None
        words = [self._words[peer] for peer in members if peer in self._words]
        agreed = [word.worse for word in words if word.worse >= rule.patience]
        if 2 * len(agreed) <= len(members):
            return None
        times = f"{min(agreed)} evaluations in a row"
        return f"stop.metric = {rule.metric!r}: no better in {times}, by {len(agreed)} peers' word"
