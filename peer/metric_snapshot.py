"""What a peer tells its coordinator of its metrics, for dashboards that cannot reach the peer.

What belongs here: the choice of what leaves. How it travels is in `peer.transport`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry

from coordinator.member_metrics import FAMILIES, MAX_SAMPLES, Sample, short_name

EVERY_S = 5.0
"""Between two snapshots: as often as the Prometheus of deploy/ scrapes."""


def snapshot(
    registry: CollectorRegistry, may_leave: Callable[[str], bool] = lambda _: True
) -> tuple[Sample, ...]:
    """The present values of the metrics that the coordinator passes on.

    `may_leave` is asked with the name of each of the peer's metrics (without `_total`), such as
    `relayswarm_peer_training_loss`; what it denies stays here, and so does what is not finite.
    """
    return tuple(_samples(registry, may_leave))[:MAX_SAMPLES]


def _samples(registry: CollectorRegistry, may_leave: Callable[[str], bool]) -> Iterator[Sample]:
    for metric in registry.collect():
        family = FAMILIES.get(short_name(metric.name))
        if family is None or not may_leave(metric.name):
            continue
        for one in metric.samples:
            name = short_name(one.name)
            if name in family.samples and math.isfinite(one.value):
                yield Sample(name, one.value, tuple(sorted(one.labels.items())))
