"""Sums of metrics on their way between simulated peers, by the same network as models."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from peer.algorithms.core import Drop, Head, PeerId, Verdict
from peer.algorithms.metric_relay import Sums, SwarmMean, Tell
from peer.simulator.world import RETRY_S, Link, Reachable, World
from peer.swarm_metrics import SwarmMetrics, as_event, metric_weight
from relayswarm.config import RunConfig


class MetricMail:
    """Delivers on the clock of `world` what peers tell each other; `boxes` are theirs.

    Without a world, and once its time has come to an end, `run_out` delivers. Whoever is not
    `connected` to a receiver hears that it cannot be reached.
    """

    def __init__(self, link: Link, connected: Reachable, world: World | None = None) -> None:
        self.boxes: dict[PeerId, SwarmMetrics] = {}
        self._link, self._connected, self._world = link, connected, world
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._runs_out = False

    def open(
        self,
        peer: PeerId,
        config: RunConfig,
        tell: Callable[[dict[str, Any]], None],
        weight: float = 1.0,
    ) -> SwarmMetrics:
        """A box for a peer of that weight, or for its new life; `tell` gets its `swarm_metrics`
        events."""

        def learnt(swarm: SwarmMean) -> None:
            tell({"event": "swarm_metrics", "peer": peer, **as_event(swarm)})

        weight_of_metrics = metric_weight(config, weight)
        send = partial(self._send, peer)
        box = SwarmMetrics(config, send, _ignore, learnt, weight_of_metrics)
        self.boxes[peer] = box
        return box

    def run_out(self) -> None:
        """Deliver all that is under way."""
        self._runs_out = True
        while self._agenda:
            heapq.heappop(self._agenda)[2]()
        self._runs_out = False

    def settle(self) -> None:
        """Let the last evaluations come to whom they can reach, as peers do before they leave."""
        self.run_out()
        for peer, box in self.boxes.items():
            if self._connected(peer, peer):  # it lives
                box.await_others(0.0)
        self.run_out()

    def _send(self, sender: PeerId, tell: Tell) -> None:
        for delivery in self._link(sender, tell.to, tell.head):
            head = replace(tell.head, lost=delivery.lost or not tell.sums)
            self._later(delivery.delay_s, partial(self._arrive, tell.to, head, tell.sums))

    def _later(self, delay_s: float, action: Callable[[], None]) -> None:
        time = delay_s + (self._world.now if self._world else 0.0)
        heapq.heappush(self._agenda, (time, next(self._numbers), action))
        if self._world:
            self._world.at(time, self._deliver_due)

    def _deliver_due(self) -> None:
        assert self._world is not None
        while self._agenda and self._agenda[0][0] <= self._world.now:
            heapq.heappop(self._agenda)[2]()

    def _arrive(self, to: PeerId, head: Head, sums: Sums) -> None:
        if not self._connected(head.sender, to):
            self.boxes[head.sender].gone(to)
            return
        verdict = self.boxes[to].received(head, sums)
        if verdict is Verdict.EPOCH_AHEAD and not self._runs_out:  # no view comes any more
            self._later(RETRY_S, partial(self._arrive, to, head, sums))


def _ignore(dropped: Drop) -> None:
    """All peers of a simulation have the same task: nothing is dropped for its names."""
    del dropped
