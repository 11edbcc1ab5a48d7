"""What members tell of their metrics: what is taken, what is shown, and when it goes."""

from __future__ import annotations

import math
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest, make_wsgi_app
from prometheus_client.parser import text_string_to_metric_families

from coordinator.conductor import Conductor
from coordinator.member_metrics import (
    FAMILIES,
    MAX_OF_FAMILY,
    MAX_SAMPLES,
    Family,
    FamilyKind,
    Fault,
    Sample,
    checked,
)
from coordinator.members import Join, Renew
from coordinator.metrics import MemberMetrics, Metrics
from coordinator.store import Store
from coordinator.web import WebServer
from relayswarm.config import RunConfig
from relayswarm.coordinator.v1 import coordinator_pb2 as pb

LOSS = Sample("training_loss", 0.5)


def snapshot(**values: float) -> pb.MetricSnapshot:
    samples = [pb.MetricSample(name=name, value=value) for name, value in values.items()]
    return pb.MetricSnapshot(samples=samples)


@pytest.mark.parametrize(
    ("sample", "fault"),
    [
        (LOSS, None),
        (Sample("steps_total", 3), None),
        (Sample("evaluation", -1.5, (("metric", "log-likelihood"),)), None),
        (Sample("step_seconds_bucket", 2, (("le", "+Inf"), ("phase", "wait"))), None),
        (Sample("exchanges_total", 2, (("outcome", "both"), ("role", "partner"))), None),
        (Sample("info", 1), Fault.NAME),
        (Sample("steps", 1), Fault.NAME),
        (Sample("relayswarm_coordinator_members", 1), Fault.NAME),
        (Sample("evaluation", 1.0), Fault.LABELS),
        (Sample("training_loss", 1.0, (("peer", "peer-1"),)), Fault.LABELS),
        (Sample("evaluation", 1.0, (("metric", "a\n# HELP"),)), Fault.LABELS),
        (Sample("evaluation", 1.0, (("metric", "x" * 65),)), Fault.LABELS),
        (Sample("evaluation", 1.0, (("metric", ""),)), Fault.LABELS),
        (Sample("step_seconds_bucket", 2, (("le", "nan"), ("phase", "wait"))), Fault.LABELS),
        (Sample("training_loss", math.nan), Fault.VALUE),
        (Sample("training_loss", math.inf), Fault.VALUE),
        (Sample("steps_total", -1), Fault.VALUE),
    ],
)
def test_a_sample_is_taken_or_refused_for_a_reason(sample: Sample, fault: Fault | None) -> None:
    taken, faults = checked([sample])
    assert (taken, dict(faults)) == (((sample,), {}) if fault is None else ((), {fault: 1}))


def test_one_value_of_a_name_and_its_labels() -> None:
    taken, faults = checked([LOSS, Sample("training_loss", 9.0)])
    assert (taken, faults) == ((LOSS,), {Fault.REPEATED: 1})


def test_how_many_are_taken_has_an_end() -> None:
    told = [Sample("evaluation", 1.0, (("metric", f"m{k}"),)) for k in range(MAX_OF_FAMILY + 5)]
    taken, faults = checked(told)
    assert (len(taken), faults) == (MAX_OF_FAMILY, {Fault.MANY: 5})
    families = ("evaluation", "swarm_metric", "swarm_metric_peers", "swarm_metric_weight")
    by_reason = ("messages_refused_total", "messages_retried_total", "messages_dropped_total")
    many = [Sample(f, 1.0, (("metric", f"m{k}"),)) for f in families for k in range(MAX_OF_FAMILY)]
    many += [
        Sample(f, 1.0, (("reason", f"r{k}"),)) for f in by_reason for k in range(MAX_OF_FAMILY)
    ]
    many += [
        Sample("calls_denied_total", 1.0, (("reason", f"r{k}"),)) for k in range(MAX_OF_FAMILY)
    ]
    assert len(many) == MAX_SAMPLES
    taken, faults = checked([*many, LOSS])
    assert (len(taken), faults) == (MAX_SAMPLES, {Fault.MANY: 1})


def samples() -> st.SearchStrategy[Sample]:
    names = sorted(name for family in FAMILIES.values() for name in family.samples)
    words = st.sampled_from(["metric", "reason", "le", "phase", "role", "run", "peer", "__name__"])
    labels = st.lists(st.tuples(words, st.text(max_size=8)), max_size=3, unique_by=lambda x: x[0])
    return st.builds(
        Sample,
        st.sampled_from(names) | st.text(max_size=12),
        st.floats(),
        labels.map(lambda pairs: tuple(sorted(pairs))),
    )


@given(st.lists(samples(), max_size=20))
def test_nothing_that_a_member_tells_can_break_the_page(told: list[Sample]) -> None:
    taken, faults = checked(told)
    assert len(taken) + sum(faults.values()) == len(told)
    text = exposition(taken)
    shown = [one for family in text_string_to_metric_families(text) for one in family.samples]
    assert len(shown) == len(taken) + 1
    assert all(one.labels["run"] == "run" and one.labels["peer"] == "peer-0" for one in shown)


def exposition(taken: tuple[Sample, ...]) -> str:
    """What Prometheus would read of one member."""
    conductor = Conductor(RunConfig(), Store(None))
    conductor.handle(Join(1, "127.0.0.1:5", "peer-0", fingerprint=1))
    conductor.handle(Renew("peer-0", 1, metrics=taken))
    registry = CollectorRegistry()
    registry.register(MemberMetrics(conductor))
    return generate_latest(registry).decode()


def test_a_family_names_its_samples() -> None:
    family = Family("step_seconds", FamilyKind.HISTOGRAM, ("phase",))
    assert set(family.samples) == {f"step_seconds_{part}" for part in ("bucket", "sum", "count")}
    assert all(Sample(name, 0).family is f for f in FAMILIES.values() for name in f.samples)


@pytest.fixture
def scraped(serve: Callable[..., Any]) -> Iterator[tuple[Any, Callable[[], dict[str, float]]]]:
    """A coordinator with two members, and a scrape of what is told of members."""
    running = serve("peers = 2\n[coordinator]\nlease_s = 60")
    metrics = Metrics(running.conductor)
    running.conductor.listeners.insert(0, metrics)
    running.join("peer-0")
    running.join("peer-1")
    with closing(WebServer(make_wsgi_app(metrics.registry), "127.0.0.1:0")) as server:
        yield running, lambda: scrape(server.address)


def scrape(address: str) -> dict[str, float]:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=20.0) as response:
        text = response.read().decode()
    return {
        " ".join(
            (sample.name, *(f"{k}={v}" for k, v in sorted(sample.labels.items())))
        ): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if "member_" in sample.name or "samples_refused" in sample.name
    }


def test_what_members_tell_is_shown_by_run_and_peer(scraped: Any) -> None:
    running, read = scraped
    assert read()["relayswarm_member_info peer=peer-1 run=run"] == 1
    running.renew("peer-0", metrics=snapshot(training_loss=0.5, steps_total=7))
    running.renew("peer-1", metrics=snapshot(training_loss=2.5))
    values = read()
    assert values["relayswarm_member_training_loss peer=peer-0 run=run"] == 0.5
    assert values["relayswarm_member_training_loss peer=peer-1 run=run"] == 2.5
    assert values["relayswarm_member_steps_total peer=peer-0 run=run"] == 7


def test_a_renewal_without_metrics_leaves_what_was_told(scraped: Any) -> None:
    running, read = scraped
    running.renew("peer-0", metrics=snapshot(training_loss=0.5))
    running.renew("peer-0", step=3)
    assert read()["relayswarm_member_training_loss peer=peer-0 run=run"] == 0.5
    running.renew("peer-0", metrics=snapshot(steps_total=1))
    assert "relayswarm_member_training_loss peer=peer-0 run=run" not in read()


def test_the_metrics_of_who_has_left_vanish(scraped: Any) -> None:
    running, read = scraped
    running.renew("peer-0", metrics=snapshot(training_loss=0.5))
    running.renew("peer-1", metrics=snapshot(training_loss=2.5))
    running.leave("peer-0")
    assert not [name for name in read() if "peer=peer-0" in name]
    assert read()["relayswarm_member_training_loss peer=peer-1 run=run"] == 2.5


def test_what_is_refused_is_counted_and_the_rest_is_shown(scraped: Any) -> None:
    running, read = scraped
    told = snapshot(training_loss=0.5, made_up=1, steps_total=-1, consensus_distance=math.nan)
    told.samples.add(name="evaluation", value=1.0, labels={"metric": 'x"} 1\n'})
    running.renew("peer-0", metrics=told)
    values = read()
    assert values["relayswarm_member_training_loss peer=peer-0 run=run"] == 0.5
    assert len([name for name in values if "peer=peer-0" in name]) == 2  # with info
    refused = "relayswarm_coordinator_metric_samples_refused_total"
    counts = {f: values[f"{refused} reason={f.value}"] for f in Fault}
    assert counts == {**dict.fromkeys(Fault, 0), Fault.NAME: 1, Fault.LABELS: 1, Fault.VALUE: 2}
