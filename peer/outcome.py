"""What a run leaves behind, however it was run: as processes on this machine or simulated.

What belongs here: the values that reports are written from, and what a metric's worst value is.
Nothing here computes with models, so importing it costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor

    from relayswarm.config import RunConfig

Metrics: TypeAlias = Mapping[str, float | None]
"""Values by name; None where a value was not finite."""

SwarmMetrics: TypeAlias = Mapping[str, Any]
"""Means over the swarm at one evaluation (`step`): `metrics`, and by metric the `weights` and how
many peers were `measured_by`; `peers` are in it in all."""

ACCURACY = "accuracy"


@dataclass(frozen=True, slots=True)
class PeerOutcome:
    """How one peer ended.

    `losses` are (step, training loss of that step, None if not finite) in the order they came,
    `evaluations` (step, metrics), `swarm_metrics` what it knew of the swarm's, `model` the final
    model by tensor name, where it is known.
    """

    id: str
    steps: int
    metrics: Metrics
    messages_sent: int = 0
    messages_expected: int = 0
    messages_missed: int = 0
    messages_timed_out: int = 0
    waited_s: float = 0.0
    local_steps: int = 0
    bytes_sent: int = 0
    shard: int | None = None
    shard_digest: str = ""
    notes: Sequence[str] = ()
    losses: Sequence[tuple[int, float | None]] = ()
    evaluations: Sequence[tuple[int, Metrics]] = ()
    swarm_metrics: SwarmMetrics | None = None
    model: Mapping[str, Tensor] | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Lost:
    """A peer that ended before its time."""

    id: str
    exit_code: int | None
    last_step: int
    last_words: Sequence[str] = ()  # the end of its log


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """How a run ended: its peers in visiting order, its epochs of topology from first to last.

    A topology is the content of the coordinator's `topology` event. `wall_seconds` runs from the
    first process to the end of the last peer's training (the baseline is not in it).
    `simulation` is what a simulated run cost (`peer.simulator.traffic.Cost`), None of processes.
    """

    config: RunConfig
    peers: Sequence[PeerOutcome]
    topologies: Sequence[Mapping[str, Any]]
    wall_seconds: float
    lost: Sequence[Lost] = ()
    simulation: Mapping[str, Any] | None = None

    def simulated(self, cost: Mapping[str, Any]) -> RunOutcome:
        """The same, of a simulated run that cost so much."""
        return replace(self, simulation=cost)


def newest(known: Iterable[SwarmMetrics | None]) -> SwarmMetrics | None:
    """The one of the latest step, and of those the one of most peers."""
    given = (swarm for swarm in known if swarm is not None)
    return max(given, key=lambda swarm: (swarm["step"], swarm["peers"]), default=None)


def higher_is_better(metric: str) -> bool:
    """Accuracies are better when higher; every other metric is taken for a loss."""
    return metric.endswith(ACCURACY)


def headline(metrics: Metrics) -> tuple[str, ...]:
    """The metrics that sum up a run: the accuracy alone if there is one, else all."""
    return (ACCURACY,) if ACCURACY in metrics else tuple(metrics)


def worst(metric: str, values: Iterable[float | None]) -> float | None:
    """The worst of some values; None, a value that was not finite, is worse than any other."""
    values = list(values)
    known = [value for value in values if value is not None]
    if len(known) < len(values) or not known:
        return None
    return min(known) if higher_is_better(metric) else max(known)


def mean(values: Iterable[float | None]) -> float | None:
    """The plain mean; None if a value was not finite, or there is none."""
    values = list(values)
    known = [value for value in values if value is not None]
    if len(known) < len(values) or not known:
        return None
    return sum(known) / len(known)


def shown(metric: str, value: float | None) -> str:
    """A metric's value for people."""
    if value is None:
        return "not finite"
    return f"{value:.1%}" if metric.endswith(ACCURACY) else f"{value:.4g}"
