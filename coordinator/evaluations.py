"""A member's evaluation on the wire: from the member to the coordinator, and to whoever asks.

What belongs here: what both ends of the contract do with it.
"""

from __future__ import annotations

from coordinator.member_metrics import EvaluatedMetric, Evaluation
from relayswarm.coordinator.v1 import coordinator_pb2 as pb


def evaluation_message(evaluation: Evaluation) -> pb.Evaluation:
    """For the wire."""
    metrics = [
        pb.EvaluatedMetric(name=one.name, value=one.value, weight=one.weight)
        for one in evaluation.metrics
    ]
    return pb.Evaluation(step=evaluation.step, metrics=metrics)


def evaluation_in(message: pb.RenewLeaseRequest | pb.MemberStatus) -> Evaluation | None:
    """What is told there; None: nothing."""
    if not message.HasField("evaluation"):
        return None
    told = message.evaluation
    rows = (EvaluatedMetric(one.name, one.value, one.weight) for one in told.metrics)
    return Evaluation.of(told.step, rows)
