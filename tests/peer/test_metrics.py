"""A peer's metrics, where they decide something."""

import math

import pytest

from peer.metrics import PeerMetrics


@pytest.mark.parametrize(
    ("loss", "count"), [(0.5, 0), (math.nan, 1), (math.inf, 1), (-math.inf, 1)], ids=str
)
def test_losses_that_are_not_finite_are_counted(loss: float, count: int) -> None:
    metrics = PeerMetrics()
    metrics.trained(loss, 0.1, local_steps=1)
    found = metrics.registry.get_sample_value("relayswarm_peer_losses_not_finite_total")
    assert found == count
