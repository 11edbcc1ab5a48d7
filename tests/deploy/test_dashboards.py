"""The Grafana dashboard: fresh, whole, and of metrics that there are."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml
from prometheus_client import CollectorRegistry

from coordinator.conductor import Conductor
from coordinator.member_metrics import FAMILIES, PREFIX, short_name
from coordinator.metrics import Metrics
from coordinator.store import Store
from peer.metrics import PeerMetrics
from relayswarm.config import RunConfig

ROOT = Path(__file__).parents[2]
DASHBOARD = ROOT / "deploy/grafana/dashboards/swarm.json"
OF_PROMETHEUS = {"up", "ALERTS"}


@cache
def generator() -> ModuleType:
    path = ROOT / "tools/generate_dashboards.py"
    spec = importlib.util.spec_from_file_location("generate_dashboards", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look it up there
    spec.loader.exec_module(module)
    return module


def dashboard() -> dict[str, Any]:
    board: dict[str, Any] = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    return board


def panels() -> list[dict[str, Any]]:
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def expressions() -> Iterator[str]:
    for panel in panels():
        for target in panel["targets"]:
            yield target["expr"]
    for annotation in dashboard()["annotations"]["list"]:
        yield annotation["expr"]


def known_series() -> set[str]:
    names = {*OF_PROMETHEUS, *members()}
    for registry in (
        PeerMetrics().registry,
        Metrics(Conductor(RunConfig(), Store(None))).registry,
    ):
        names |= names_of(registry)
    return names


def members() -> set[str]:
    """What the coordinator passes on."""
    samples = {name for family in FAMILIES.values() for name in family.samples}
    return {f"{PREFIX}{name}" for name in {"info", *samples}}


def names_of(registry: CollectorRegistry) -> set[str]:
    """Sample names of all metrics, also of those that have no sample yet."""
    samples = {sample.name for family in registry.collect() for sample in family.samples}
    return samples | set(registry._names_to_collectors)


def test_it_is_fresh() -> None:
    assert DASHBOARD.read_text(encoding="utf-8") == generator().build()


def test_every_metric_in_it_exists() -> None:
    known = known_series()
    for expression in expressions():
        named = set(re.findall(r"\b(?:relayswarm|process|up|ALERTS)[a-z_]*", expression))
        used = named - {"relayswarm"}  # of a regular expression on alerts' names
        assert used, expression
        assert used <= known, used - known


def test_every_series_of_a_peer_has_the_coordinators_word_beside_it() -> None:
    """So that a panel shows peers that cannot be scraped, and rules count them."""
    rules = (ROOT / "deploy/prometheus/rules.yml").read_text(encoding="utf-8")
    queries = [*expressions(), *re.findall(r"expr: ((?:.|\n {10})*)", rules)]
    seen = 0
    for query in queries:
        own = set(re.findall(r"\b(?:relayswarm_peer|relayswarm_exchanges)[a-z_]*", query))
        for name in own - {"relayswarm_peer_info"}:
            told = PREFIX + short_name(name)
            assert told in query, query
            assert "or on (run, peer)" in query
            seen += 1
    assert seen > 30


def test_no_picture_is_missing() -> None:
    """What people are promised to see."""
    queries = "\n".join(expressions())
    for metric in (
        "peer_training_loss",
        "peer_evaluation",
        "peer_swarm_metric",
        "peer_consensus_distance",
        "peer_models_counted",
        "peer_swarm_size",
        "peer_messages_missed_total",
        "peer_messages_refused_total",
        "peer_sent_bytes_total",
        "peer_step_seconds_bucket",
        "exchanges_total",
        "coordinator_epoch_number",
        "peer_gpu_memory_bytes",
    ):
        assert f"relayswarm_{metric}" in queries
    assert {panel["type"] for panel in panels()} == {"timeseries", "stat", "heatmap"}


def test_panels_follow_the_variables() -> None:
    names = {one["name"] for one in dashboard()["templating"]["list"]}
    assert names == {"run", "coordinator", "peer", "metric"}
    for panel in panels():
        text = json.dumps([target["expr"] for target in panel["targets"]])
        assert panel["title"] == "Alerts" or "$peer" in text or "$coordinator" in text
        assert set(re.findall(r"\$(?!__)(\w+)", text)) <= names


def test_panels_do_not_overlap_and_have_ids_of_their_own() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        place = panel["gridPos"]
        cells = {
            (place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells


def test_it_is_provisioned_with_the_data_source_that_it_asks() -> None:
    folder = ROOT / "deploy/grafana/provisioning"
    (source,) = yaml.safe_load((folder / "datasources/prometheus.yml").read_text())["datasources"]
    assert {panel["datasource"]["uid"] for panel in panels()} == {source["uid"]}
    (provider,) = yaml.safe_load((folder / "dashboards/relayswarm.yml").read_text())["providers"]
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
    mounts = dict(one.split(":")[:2] for one in compose["services"]["grafana"]["volumes"])
    assert mounts["./deploy/grafana/dashboards"] == provider["options"]["path"]
    assert source["url"] == "http://prometheus:9090"
    assert "prometheus" in compose["services"]
