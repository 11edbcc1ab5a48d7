"""What a peer tells its coordinator of its metrics, for dashboards that cannot reach the peer.

What belongs here: the choice of what is told. How it travels is in `peer.transport`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from prometheus_client import CollectorRegistry

from coordinator.member_metrics import FAMILIES, MAX_SAMPLES, Sample, short_name

EVERY_S = 5.0
"""Between two snapshots: as often as the Prometheus of deploy/ scrapes."""


def snapshot(registry: CollectorRegistry) -> tuple[Sample, ...]:
    """The present values of the metrics that the coordinator passes on. What is not finite stays
    here, and so does what may not leave (`PeerMetrics` keeps it out of the registry)."""
    return tuple(_samples(registry))[:MAX_SAMPLES]


def _samples(registry: CollectorRegistry) -> Iterator[Sample]:
    for metric in registry.collect():
        family = FAMILIES.get(short_name(metric.name))
        if family is None:
            continue
        for one in metric.samples:
            name = short_name(one.name)
            if name in family.samples and math.isfinite(one.value):
                yield Sample(name, one.value, tuple(sorted(one.labels.items())))
