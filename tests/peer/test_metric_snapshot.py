"""What a peer tells of its metrics: all that is on the list, and nothing that may not leave."""

import math
from collections.abc import Callable

import torch

from coordinator.member_metrics import FAMILIES, checked
from peer.algorithms.core import Averaged, Verdict
from peer.metric_snapshot import snapshot
from peer.metrics import PeerMetrics


def used(may_leave: Callable[[str], bool] = lambda _: True) -> PeerMetrics:
    """The metrics of a peer to which everything has happened once."""
    metrics = PeerMetrics(may_leave)
    metrics.belong("run", "peer-0", torch.device("cpu"))
    metrics.trained(0.5, 0.1, 1)
    metrics.averaged(Averaged(3, 2, 2, 1, 0, 0, 0.25))
    metrics.evaluated({"loss": 0.5, "accuracy": 0.9})
    metrics.refuse(Verdict.CHECKSUM)
    metrics.exchanged({("initiator", "both"): 2})
    metrics.bytes_sent.labels("float32").inc(100)
    metrics.retried.labels("unavailable").inc()
    metrics.gpu_memory.labels("total").set(1)
    for gauge in (metrics.swarm_metric, metrics.swarm_metric_peers, metrics.swarm_metric_weight):
        gauge.labels("loss").set(1)
    return metrics


def test_all_of_it_is_what_the_coordinator_takes() -> None:
    told = snapshot(used().registry)
    assert checked(told) == (told, {})
    values = {(one.name, one.labels): one.value for one in told}
    assert values["training_loss", ()] == 0.5
    assert values["steps_total", ()] == 1
    assert values["evaluation", (("metric", "accuracy"),)] == 0.9
    assert values["messages_refused_total", (("reason", "checksum"),)] == 1
    assert values["step_seconds_bucket", (("le", "0.3"), ("phase", "wait"))] == 1
    assert values["process_resident_memory_bytes", ()] > 0


def test_every_family_on_the_list_is_a_metric_of_a_peer() -> None:
    assert {one.family.name for one in snapshot(used().registry)} == set(FAMILIES)


def test_what_may_not_leave_stays() -> None:
    metrics = used(lambda name: name == "accuracy")
    told = snapshot(metrics.registry)
    names = {one.family.name for one in told}
    assert names == set(FAMILIES) - {"training_loss"}
    measured = {one.labels for one in told if one.family.name == "evaluation"}
    assert measured == {(("metric", "accuracy"),)}


def test_what_is_not_finite_is_not_told() -> None:
    metrics = used()
    metrics.trained(math.nan, 0.1, 1)
    names = {one.name for one in snapshot(metrics.registry)}
    assert "training_loss" not in names
    assert "losses_not_finite_total" in names
