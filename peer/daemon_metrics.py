"""The swarm's metrics in a daemon: over gRPC to neighbours, and to Prometheus and the user."""

from __future__ import annotations

from collections.abc import Callable

from peer.algorithms.core import Drop, Head, PeerId
from peer.algorithms.metric_relay import SwarmMean, Tell
from peer.announce import Announcer
from peer.metrics import PeerMetrics
from peer.swarm_metrics import SwarmMetrics, as_event
from peer.transport.contract import Outgoing
from peer.transport.metric_payload import MetricPayload
from relayswarm.config import RunConfig


def swarm_metrics(
    peer: PeerId,
    config: RunConfig,
    metrics: PeerMetrics,
    announce: Announcer,
    send: Callable[[PeerId, Head, Outgoing | None], None],
    drop: Callable[[Drop], None],
    weight: float | None,
    may_leave: Callable[[str], bool],
) -> SwarmMetrics:
    """A peer's part in them. `send` posts a message, or with None the word that there is nothing in
    it, `drop` hears of one that went unused; `weight` is as in `SwarmMetrics`."""

    def tell(what: Tell) -> None:
        send(what.to, what.head, MetricPayload(what.sums) if what.sums else None)

    def learnt(swarm: SwarmMean) -> None:
        metrics.learnt(swarm)
        announce("swarm_metrics", peer=peer, **as_event(swarm))

    return SwarmMetrics(config, tell, drop, learnt, weight, may_leave)
