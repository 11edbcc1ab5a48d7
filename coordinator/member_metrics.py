"""The metrics that a member may tell with its heartbeats, and what is taken of what it tells.

What belongs here: the list of families that coordinator and peers share, the rule by which a sample
is held against it, and that for a member's evaluation. The coordinator passes samples on under
`relayswarm_member_`, so that nothing that a member tells can be taken for a metric of the
coordinator's own, or be counted twice where Prometheus scrapes the member as well.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

PREFIX = "relayswarm_member_"
MAX_SAMPLES = 512  # of one member
MAX_OF_FAMILY = 64  # samples: no honest member has so many reasons, formats or metrics
MAX_EVALUATED = 32  # metrics of an evaluation
MAX_NAME = 64  # characters of such a metric's name

_VALUE = re.compile(r"[A-Za-z0-9_.:/+-]{1,64}")
_BOUND = re.compile(r"\+Inf|[0-9]{1,6}(\.[0-9]{1,6})?")


class FamilyKind(Enum):
    """A family's type, in Prometheus' words."""

    GAUGE = "gauge"
    COUNTER = "counter"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Family:
    """Samples of one name. `labels` are those that each of them has."""

    name: str
    kind: FamilyKind
    labels: tuple[str, ...] = ()

    @property
    def samples(self) -> Mapping[str, tuple[str, ...]]:
        """The labels of its samples, by the samples' names."""
        if self.kind is FamilyKind.GAUGE:
            return {self.name: self.labels}
        if self.kind is FamilyKind.COUNTER:
            return {f"{self.name}_total": self.labels}
        parts = {"bucket": (*self.labels, "le"), "sum": self.labels, "count": self.labels}
        return {f"{self.name}_{part}": labels for part, labels in parts.items()}


def _families() -> Iterable[Family]:
    of_metric, of_reason = ("metric",), ("reason",)
    gauges: Mapping[str, tuple[str, ...]] = {
        "step": (),
        "local_steps_per_second": (),
        "training_loss": (),
        "evaluation": of_metric,
        "swarm_metric": of_metric,
        "swarm_metric_peers": of_metric,
        "swarm_metric_weight": of_metric,
        "swarm_metrics_step": (),
        "models_counted": (),
        "swarm_size": (),
        "epoch_term": (),
        "epoch_number": (),
        "consensus_distance": (),
        "gpu_memory_bytes": ("kind",),
        "process_resident_memory_bytes": (),
    }
    counters: Mapping[str, tuple[str, ...]] = {
        "steps": (),
        "local_steps": (),
        "losses_not_finite": (),
        "messages_sent": (),
        "messages_received": (),
        "messages_expected": (),
        "messages_used_late": (),
        "messages_missed": (),
        "messages_timed_out": (),
        "messages_refused": of_reason,
        "messages_retried": of_reason,
        "messages_dropped": of_reason,
        "calls_denied": of_reason,
        "exchanges": ("role", "outcome"),
        "sent_bytes": ("format",),
        "received_bytes": (),
        "unreachable_neighbours": (),
        "lease_expiries": (),
        "checkpoint_failures": (),
        "process_cpu_seconds": (),
    }
    histograms: Mapping[str, tuple[str, ...]] = {
        "step_seconds": ("phase",),
        "checkpoint_seconds": (),
    }
    for name, labels in gauges.items():
        yield Family(name, FamilyKind.GAUGE, labels)
    for name, labels in counters.items():
        yield Family(name, FamilyKind.COUNTER, labels)
    for name, labels in histograms.items():
        yield Family(name, FamilyKind.HISTOGRAM, labels)


FAMILIES: Mapping[str, Family] = {family.name: family for family in _families()}
"""All that a member may tell, by name: those of the dashboard and of the alerts."""

_OF_SAMPLE = {sample: family for family in FAMILIES.values() for sample in family.samples}


@dataclass(frozen=True, slots=True)
class Sample:
    """One value, under the name that it has at the member, but for the prefix."""

    name: str
    value: float
    labels: tuple[tuple[str, str], ...] = ()  # in the order of the labels' names

    @property
    def family(self) -> Family:
        """What it belongs to. Raises KeyError for a name that is not on the list."""
        return _OF_SAMPLE[self.name]


class Fault(Enum):
    """Why a sample was not taken; a label of the counter."""

    NAME = "name"  # not on the list
    LABELS = "labels"  # not those of the family, or with a value that no honest member has
    VALUE = "value"  # not finite, or a negative count
    REPEATED = "repeated"
    MANY = "many"  # more than `MAX_SAMPLES`, or than `MAX_OF_FAMILY` of one family


@dataclass(frozen=True, slots=True)
class EvaluatedMetric:
    """What a member measured, and what that weighs in the swarm's mean."""

    name: str
    value: float
    weight: float

    @property
    def is_sound(self) -> bool:
        """Whether an honest member can have told it."""
        named = 0 < len(self.name) <= MAX_NAME and self.name.isprintable()
        return named and math.isfinite(self.value) and 0 <= self.weight < math.inf


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a member measured of its model at `step`, of what its site lets leave."""

    step: int
    metrics: tuple[EvaluatedMetric, ...]

    @classmethod
    def of(cls, step: int, told: Iterable[EvaluatedMetric]) -> Evaluation:
        """What is taken of what is told: what is sound, each name once, `MAX_EVALUATED` at most."""
        taken: dict[str, EvaluatedMetric] = {}
        for one in told:
            if one.is_sound and len(taken) < MAX_EVALUATED:
                taken.setdefault(one.name, one)
        return cls(step, tuple(taken.values()))

    def as_json(self) -> dict[str, Any]:
        """Step, values and weights, by metric."""
        return {
            "step": self.step,
            "metrics": {one.name: one.value for one in self.metrics},
            "weights": {one.name: one.weight for one in self.metrics},
        }


def short_name(name: str) -> str:
    """The name on the list of a family of a peer's own."""
    return name.removeprefix("relayswarm_peer_").removeprefix("relayswarm_")


def checked(told: Iterable[Sample]) -> tuple[tuple[Sample, ...], Mapping[Fault, int]]:
    """What is taken of what a member tells, and how many samples were not, by fault."""
    taken: dict[tuple[str, tuple[tuple[str, str], ...]], Sample] = {}
    sizes: Counter[str] = Counter()
    faults: Counter[Fault] = Counter()
    for sample in told:
        fault = _fault(sample)
        key = (sample.name, sample.labels)
        if fault is None and key in taken:
            fault = Fault.REPEATED
        if fault is None and (
            len(taken) >= MAX_SAMPLES or sizes[sample.family.name] >= MAX_OF_FAMILY
        ):
            fault = Fault.MANY
        if fault is not None:
            faults[fault] += 1
            continue
        taken[key] = sample
        sizes[sample.family.name] += 1
    return tuple(taken.values()), faults


def _fault(sample: Sample) -> Fault | None:
    family = _OF_SAMPLE.get(sample.name)
    if family is None:
        return Fault.NAME
    if tuple(sorted(family.samples[sample.name])) != tuple(name for name, _ in sample.labels):
        return Fault.LABELS
    rules = ((_BOUND if name == "le" else _VALUE, value) for name, value in sample.labels)
    if not all(rule.fullmatch(value) for rule, value in rules):
        return Fault.LABELS
    negative = sample.value < 0 and family.kind is not FamilyKind.GAUGE
    return Fault.VALUE if negative or not math.isfinite(sample.value) else None
