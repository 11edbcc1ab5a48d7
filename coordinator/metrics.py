"""The coordinator's Prometheus metrics.

What belongs here: their names, and which notice of the conductor moves which. Labels are values of
enums only, in a registry of their own.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial

from prometheus_client import CollectorRegistry, Counter, Gauge, Metric, ProcessCollector
from prometheus_client.registry import Collector

from coordinator.conductor import Conductor, Denied, Notice, Publication, SamplesRefused
from coordinator.member_metrics import FAMILIES, Fault
from coordinator.member_metrics import PREFIX as MEMBER_PREFIX
from coordinator.members import Admitted, Gone, Reason, Refusal, Refused, Renewed, RunState
from relayswarm.net.gate import Denial

PREFIX = "relayswarm_coordinator"


class Metrics:
    """A listener of the conductor."""

    def __init__(self, conductor: Conductor) -> None:
        self.registry = CollectorRegistry()
        self._conductor = conductor
        ProcessCollector(registry=self.registry)
        self._count()
        self._gauge()
        self.registry.register(MemberMetrics(conductor))

    def _count(self) -> None:
        make = self._counter
        self._joins = make("joins", "Peers that became members.")
        self._refused = make("joins_refused", "Joins refused, by reason.", "reason")
        self._denied = make("calls_denied", "Calls turned away at the door, by reason.", "reason")
        self._renewals = make("lease_renewals", "Leases renewed.")
        self._expiries = make("lease_expiries", "Leases that ran out.")
        self._lost = make("members_lost", "Members lost, by reason.", "reason")
        self._finished = make("members_finished", "Members that left after their last step.")
        self._faults = make(
            "metric_samples_refused", "Samples of members' metrics not taken, by reason.", "reason"
        )
        self._elections = make("elections", "Epochs published, by reason.", "reason")
        for denial in Denial:
            self._denied.labels(denial.value)
        for fault in Fault:
            self._faults.labels(fault.value)
        for refusal in Refusal:
            self._refused.labels(refusal.value)
        for reason in (Reason.LEASE_EXPIRED, Reason.UNREACHABLE, Reason.LEFT):
            self._lost.labels(reason.value)
        for reason in Reason:
            self._elections.labels(reason.value)

    def _gauge(self) -> None:
        make = self._make_gauge
        run_id = self._conductor.config.run_id
        self._make_gauge("info", "1, of the run of this process.", "run").labels(run_id).set(1)
        self._term = make("epoch_term", "Term of the epoch published last.")
        self._number = make("epoch_number", "Number of the epoch published last.")
        self._step = make("epoch_effective_step", "Step from which the present epoch holds.")
        self._size = make("epoch_members", "Members of the present epoch.")
        self._diameter = make("epoch_diameter_hops", "Longest path in a tree of the epoch.")
        self._lr_factor = make(
            "epoch_lr_factor", "Learning-rate factor that makes up for the delay of relaying."
        )
        self._published_at = make(
            "epoch_published_timestamp_seconds", "When the present epoch was published."
        )
        membership, rules = self._conductor.membership, self._conductor.rules
        make("members", "Peers with a lease.").set_function(lambda: len(membership.members))
        make("candidates", "Peers that are about to join.").set_function(
            lambda: len(membership.candidates)
        )
        make("members_needed", "Peers needed to start.").set(rules.needed)
        make("member_step_min", "Step of the slowest member.").set_function(
            lambda: min(self._steps(), default=0)
        )
        make("member_step_max", "Step of the fastest member.").set_function(
            lambda: max(self._steps(), default=0)
        )
        states = self._make_gauge("run_state", "1 for the state that the run is in.", "state")
        for state in RunState:
            states.labels(state.value).set_function(partial(self._is_in, state))

    def _is_in(self, state: RunState) -> float:
        return float(self._conductor.membership.state is state)

    def _steps(self) -> list[int]:
        with self._conductor.lock:
            return [m.progress.step for m in self._conductor.membership.members.values()]

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"{PREFIX}_{name}", text, labels, registry=self.registry)

    def _make_gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"{PREFIX}_{name}", text, labels, registry=self.registry)

    def __call__(self, notice: Notice) -> None:
        """Take note."""
        match notice:
            case Renewed():
                self._renewals.inc()
            case Admitted(candidate=False, again=False):
                self._joins.inc()
            case Refused():
                self._refused.labels(notice.refusal.value).inc()
            case Denied():
                self._denied.labels(notice.denial.value).inc()
            case SamplesRefused():
                for fault, count in notice.faults.items():
                    self._faults.labels(fault.value).inc(count)
            case Gone(reason=None):
                self._finished.inc()
            case Gone(reason=Reason() as reason):
                self._lost.labels(reason.value).inc()
                self._expiries.inc(reason is Reason.LEASE_EXPIRED)
            case Publication():
                self._published(notice)

    def _published(self, publication: Publication) -> None:
        elected = publication.elected
        self._elections.labels(elected.reason.value).inc()
        self._term.set(elected.term)
        self._number.set(elected.number)
        self._step.set(elected.effective_step)
        self._size.set(len(elected.members))
        self._diameter.set(publication.layout.diameter)
        self._lr_factor.set(float(publication.layout.lr_factor))
        self._published_at.set(time.time())


class MemberMetrics(Collector):
    """What members told of their metrics with their heartbeats. Those of one that has gone are gone
    with it."""

    def __init__(self, conductor: Conductor) -> None:
        self._conductor = conductor

    def collect(self) -> Iterator[Metric]:
        """All members' samples, each with the labels `run` and `peer`."""
        with self._conductor.lock:
            members = tuple(self._conductor.membership.members.values())
        families = self._families()
        run = self._conductor.config.run_id
        for member in members:
            labels = {"run": run, "peer": member.peer_id}
            families["info"].add_sample(f"{MEMBER_PREFIX}info", labels, 1)
            for one in member.metrics:
                name, more = f"{MEMBER_PREFIX}{one.name}", dict(one.labels)
                families[one.family.name].add_sample(name, labels | more, one.value)
        yield from families.values()

    def describe(self) -> Iterator[Metric]:
        """Without samples, for whoever wants to know the names."""
        yield from self._families().values()

    @staticmethod
    def _families() -> dict[str, Metric]:
        info = Metric(f"{MEMBER_PREFIX}info", "1, of each peer with a lease.", "gauge")
        told = {
            name: Metric(f"{MEMBER_PREFIX}{name}", "As the member told it last.", family.kind.value)
            for name, family in FAMILIES.items()
        }
        return {"info": info} | told
