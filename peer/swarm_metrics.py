"""What the swarm measures now, as one peer knows it: the relay of metrics and its surroundings.

What belongs here: what of a peer's evaluations travels, and who hears what comes of it. How sums
travel over the tree is in `peer.algorithms.metric_relay`; the simulator uses both as daemons do.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

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
from relayswarm.config import RunConfig
from relayswarm.logs import finite
from relayswarm.task import Measured


class SwarmMetrics:
    """One peer's part in the swarm's metrics. Thread-safe; nothing here waits but `await_others`.

    `send` sends sums to a neighbour, `drop` hears of sums that were taken and turned out to be of
    no use, `learnt` of every mean that is newer or of more peers than the one before.
    """

    def __init__(
        self,
        config: RunConfig,
        send: Callable[[Tell], None],
        drop: Callable[[Drop], None],
        learnt: Callable[[SwarmMean], None],
    ) -> None:
        self._every, self._last = config.evaluation.every, config.steps
        self._send, self._drop, self._learnt = send, drop, learnt
        self._relay = MetricRelay(self._is_due)
        self._told: SwarmMean | None = None  # to `learnt`
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
        if not self._is_due(step):
            return  # scripted peers may go on beyond the last step
        chosen = [name for name in values if len(name) <= MAX_NAME][:MAX_METRICS]
        kept = {name: values[name] for name in chosen if _is_sound(values[name])}
        with self._changed:
            own = {name: (float(m.value), float(m.weight)) for name, m in kept.items()}
            self._perform(self._relay.measured(step, own))

    def measured_last(self, values: Mapping[str, Measured]) -> None:
        """This peer's evaluation of its final model."""
        self.measured(self._last, values)

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

    def _is_due(self, step: int) -> bool:
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
            self._learnt(known)
        self._changed.notify_all()


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


def _is_sound(measured: Measured) -> bool:
    total = measured.value * measured.weight
    return math.isfinite(total) and abs(total) <= LARGEST and 0 <= measured.weight <= LARGEST
