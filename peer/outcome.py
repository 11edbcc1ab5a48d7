"""What a run leaves behind, however it was run: as processes on this machine or simulated.

What belongs here: the values that reports are written from, and what a metric's worst value is.
Nothing here computes with models, so importing it costs nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from coordinator.stopping import higher_is_better

if TYPE_CHECKING:
    from torch import Tensor

    from relayswarm.config import RunConfig

Metrics: TypeAlias = Mapping[str, float | None]
"""Values by name; None where a value was not finite."""

SwarmMetrics: TypeAlias = Mapping[str, Any]
"""Means over the swarm at one evaluation (`step`): `metrics`, and by metric the `weights` and how
many peers were `measured_by`; `peers` are in it in all."""

ACCURACY = "accuracy"

BEFORE = "before_"
"""What names of metrics begin with that were measured before averaging."""


@dataclass(frozen=True, slots=True)
class PeerOutcome:
    """How one peer ended.

    `losses` are (step, training loss of that step, None if not finite) in the order they came,
    `missed` (step, messages that did not come in it), `evaluations` (step, metrics),
    `swarm_metrics` what it knew of the swarm's, `privacy` what its movements have given away, where
    they are clipped (`Learner.privacy_spent`), `model` the final model by tensor name, where it is
    known.
    """

    id: str
    steps: int
    metrics: Metrics
    messages_sent: int = 0
    messages_retried: int = 0
    messages_expected: int = 0
    messages_missed: int = 0
    messages_timed_out: int = 0
    waited_s: float = 0.0
    local_steps: int = 0
    bytes_sent: int = 0
    shard: int | None = None
    shard_digest: str = ""
    weight: float = 1.0  # 0: without data
    notes: Sequence[str] = ()
    losses: Sequence[tuple[int, float | None]] = ()
    missed: Sequence[tuple[int, float]] = ()
    evaluations: Sequence[tuple[int, Metrics]] = ()
    swarm_metrics: SwarmMetrics | None = None
    privacy: Mapping[str, Any] | None = None
    model: Mapping[str, Tensor] | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Lost:
    """A peer that ended before its time."""

    id: str
    exit_code: int | None
    last_step: int
    last_words: Sequence[str] = ()  # the end of its log


@dataclass(frozen=True, slots=True)
class Happening:
    """Something that befell a run, `seconds` after it began (virtual ones where it is simulated).

    `event` is one of docs/commands.md, `peer` whom it befell (empty: not a single one), `text` the
    rest for people.
    """

    seconds: float
    event: str
    peer: str = ""
    text: str = ""


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """How a run ended: its peers in visiting order, its epochs of topology from first to last.

    A topology is the content of the coordinator's `topology` event, and the happening of that name
    with the same place among its like tells when it came. `wall_seconds` runs from the
    first process to the end of the last peer's training (the baseline is not in it).
    `simulation` is what a simulated run cost (`peer.simulator.traffic.Cost`), None of processes.
    """

    config: RunConfig
    peers: Sequence[PeerOutcome]
    topologies: Sequence[Mapping[str, Any]]
    wall_seconds: float
    lost: Sequence[Lost] = ()
    simulation: Mapping[str, Any] | None = None
    happenings: Sequence[Happening] = ()

    @property
    def sites(self) -> Sequence[PeerOutcome]:
        """Those of the peers that have data. The others neither train nor measure."""
        return tuple(peer for peer in self.peers if peer.weight)

    def simulated(self, cost: Mapping[str, Any]) -> RunOutcome:
        """The same, of a simulated run that cost so much."""
        return replace(self, simulation=cost)


def newest(known: Iterable[SwarmMetrics | None]) -> SwarmMetrics | None:
    """The one of the latest step, and of those the one of most peers."""
    given = (swarm for swarm in known if swarm is not None)
    return max(given, key=lambda swarm: (swarm["step"], swarm["peers"]), default=None)


def headline(metrics: Collection[str]) -> tuple[str, ...]:
    """The metrics that sum up a run: the accuracy alone if there is one, else all of averages."""
    if ACCURACY in metrics:
        return (ACCURACY,)
    return tuple(name for name in metrics if not name.startswith(BEFORE))


def decisive(metrics: Metrics) -> str | None:
    """The one metric that decides which model is better: the accuracy, else the loss, else the
    first."""
    known = [name for name in (ACCURACY, "loss", *metrics) if name in metrics]
    return next(iter(known), None)


def worst(metric: str, values: Iterable[float | None]) -> float | None:
    """The worst of some values; None, a value that was not finite, is worse than any other."""
    values = list(values)
    known = [value for value in values if value is not None]
    if len(known) < len(values) or not known:
        return None
    return min(known) if higher_is_better(metric) else max(known)


def mean(values: Iterable[float | None], weights: Sequence[float] | None = None) -> float | None:
    """The plain mean, or that with weights; None if a value was not finite, or there is none."""
    values = list(values)
    known = [value for value in values if value is not None]
    if len(known) < len(values) or not known:
        return None
    if weights is None:
        return sum(known) / len(known)
    total = sum(w * value for w, value in zip(weights, known, strict=True))
    return total / sum(weights)


def shown(metric: str, value: float | None) -> str:
    """A metric's value for people."""
    if value is None:
        return "not finite"
    return f"{value:.1%}" if metric.endswith(ACCURACY) else f"{value:.4g}"
