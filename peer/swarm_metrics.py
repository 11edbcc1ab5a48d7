"""What the swarm measures now, as one peer knows it: the relay of metrics and its surroundings.

What belongs here: what of a peer's evaluations travels, and who hears what comes of it. How sums
travel over the tree is in `peer.algorithms.metric_relay`; the simulator uses both as daemons do.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from coordinator.member_metrics import EvaluatedMetric, Evaluation
from coordinator.stopping import higher_is_better
from peer.algorithms.core import Drop, Head, PeerId, Verdict, View
from peer.algorithms.metric_relay import (
    LARGEST,
    MAX_METRICS,
    MAX_NAME,
    Effect,
    MetricRelay,
    Sums,
    SwarmMean,
    Tell,
)
from peer.outcome import BEFORE, headline
from relayswarm.config import RunConfig
from relayswarm.logs import finite
from relayswarm.task import Measured


class SwarmMetrics:
    """One peer's part in the swarm's metrics. Thread-safe; nothing here waits but `await_others`.

    `send` sends sums to a neighbour, `drop` hears of sums that were taken and turned out to be of
    no use, `learnt` of every mean that is newer or of more peers than the one before. `weight` is
    this peer's in the place of those that the task gives (None: those hold). Of a metric that may
    not leave, nothing of this peer's is in what it sends.
    """

    def __init__(
        self,
        config: RunConfig,
        send: Callable[[Tell], None],
        drop: Callable[[Drop], None],
        learnt: Callable[[SwarmMean], None],
        weight: float | None = None,
        may_leave: Callable[[str], bool] = lambda _: True,
    ) -> None:
        self._every, self._last = config.evaluation.every, config.steps
        self._has_before = config.evaluation.before_averaging
        self._send, self._drop, self._learnt = send, drop, learnt
        self._weight, self._may_leave = weight, may_leave
        self._relay = MetricRelay(self.is_due)
        self._told: SwarmMean | None = None  # to `learnt`
        self.best: SwarmMean | None = None  # of the evaluations so far, by their first metric
        self.own: Evaluation | None = None  # this peer's last, of what may leave
        self._changed = threading.Condition()

    @property
    def known(self) -> SwarmMean | None:
        """What is known of the swarm's metrics."""
        return self._relay.known

    def viewed(self, view: View) -> None:
        """A new epoch."""
        with self._changed:
            self._perform(self._relay.viewed(view))

    def measured(self, step: int, values: Mapping[str, Measured]) -> None:
        """This peer's evaluation at `step`. What is not finite is left out of the swarm's mean."""
        if not self.is_due(step):
            return  # scripted peers may go on beyond the last step
        names = [*values, *self._not_measured(values)]
        chosen = [name for name in names if len(name) <= MAX_NAME][:MAX_METRICS]
        weighed = {name: self._weighed(values[name]) for name in chosen if name in values}
        kept = {name: measured for name, measured in weighed.items() if _is_sound(measured)}
        with self._changed:
            own = {name: (float(m.value), float(m.weight)) for name, m in kept.items()}
            withheld = {name for name in own if not self._may_leave(name)}
            withheld.update(name for name in chosen if name not in values)
            told = {name: own[name] for name in own if name not in withheld}
            rows = (EvaluatedMetric(name, *measured) for name, measured in told.items())
            self.own = Evaluation.of(step, rows)
            self._perform(self._relay.measured(step, told, withheld))

    def _not_measured(self, values: Mapping[str, Measured]) -> list[str]:
        """What others measure in this evaluation and this peer has not: it came in the middle of
        it. Their sums have these names."""
        if not self._has_before:
            return []
        before = [BEFORE + name for name in values if not name.startswith(BEFORE)]
        return [name for name in before if name not in values]

    def _weighed(self, measured: Measured) -> Measured:
        return measured if self._weight is None else replace(measured, weight=self._weight)

    def measured_last(self, values: Mapping[str, Measured]) -> None:
        """This peer's evaluation of its final model."""
        self.measured(self._last, values)

    def stop_before(self, step: int) -> None:
        """The last evaluation is that of `step`."""
        with self._changed:
            self._last = min(self._last, step)

    def admit(self, head: Head) -> Verdict:
        """Is this message of use? Asked on its header."""
        with self._changed:
            return self._relay.admit(head)

    def received(self, head: Head, sums: Sums) -> Verdict:
        """Sums of a neighbour, or the announcement of their loss."""
        with self._changed:
            verdict, effects = self._relay.received(head, sums)
            self._perform(effects)
        return verdict

    def gone(self, peer: PeerId) -> None:
        """A peer cannot be reached."""
        with self._changed:
            self._perform(self._relay.gone(peer))

    def restart(self) -> None:
        """The peer begins anew, as a newcomer."""
        with self._changed:
            self._relay.restart()

    def await_others(self, patience_s: float) -> None:
        """Wait until the neighbours' last evaluations are in, then for nothing any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._relay.is_settled(self._last), patience_s)
            self._perform(self._relay.close())

    def is_due(self, step: int) -> bool:
        """Whether there is an evaluation at a step."""
        between = self._every and 0 < step < self._last and step % self._every == 0
        return step == self._last or bool(between)

    def _perform(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Tell):
                self._send(effect)
            else:
                self._drop(effect)
        known = self._relay.known
        if known is not None and known is not self._told:
            self._told = known
            if self.best is None or _is_better(known, self.best):
                self.best = known
            self._learnt(known)
        self._changed.notify_all()


def metric_weight(config: RunConfig, weight: float) -> float | None:
    """What a peer's metrics weigh in the swarm's mean: what its model does in averages, where peers
    do not weigh the same; else (None) what its task says, such as the test samples of a value."""
    return None if config.data.weighting == "uniform" and weight else weight


def as_event(swarm: SwarmMean) -> dict[str, Any]:
    """For events and reports: means, weights and how many peers measured it, by metric."""
    named = swarm.sums.items()
    return {
        "step": swarm.step,
        "peers": swarm.peers,
        "metrics": {name: None if s.mean is None else finite(float(s.mean)) for name, s in named},
        "weights": {name: float(s.weight) for name, s in named},
        "measured_by": {name: s.peers for name, s in named},
    }


def _is_better(one: SwarmMean, other: SwarmMean) -> bool:
    """Of two evaluations, by the metric that sums up a run; of as many peers, or more."""
    name = next(iter(headline(one.sums)), None)
    if name is None or (one.peers < other.peers and one.step == other.step):
        return False
    new, old = one.mean(name), other.mean(name)
    if new is None or old is None:
        return old is None
    return new > old if higher_is_better(name) else new < old


def _is_sound(measured: Measured) -> bool:
    total = measured.value * measured.weight
    return math.isfinite(total) and abs(total) <= LARGEST and 0 <= measured.weight <= LARGEST
