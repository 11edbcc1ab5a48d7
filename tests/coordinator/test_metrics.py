"""The coordinator's metrics, as Prometheus would read them."""

import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import grpc
import pytest
from prometheus_client import make_wsgi_app
from prometheus_client.parser import text_string_to_metric_families

from coordinator.conductor import Publication
from coordinator.members import Gone
from coordinator.metrics import PREFIX, Metrics
from coordinator.web import WebServer
from relayswarm.errors import ConfigError


@pytest.fixture
def scraped(serve: Callable[..., Any]) -> Iterator[tuple[Any, Callable[[], dict[str, float]]]]:
    """A coordinator, and a scrape of its metrics: name and reason or state -> value."""
    running = serve("peers = 2\n[coordinator]\nlease_s = 1")
    metrics = Metrics(running.conductor)
    running.conductor.listeners.insert(0, metrics)
    with closing(WebServer(make_wsgi_app(metrics.registry), "127.0.0.1:0")) as server:
        yield running, lambda: scrape(server.address)


def scrape(address: str) -> dict[str, float]:
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=20.0) as response:
        text = response.read().decode()
    values = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            label = "".join(f" {value}" for value in sample.labels.values())
            values[sample.name.removeprefix(f"{PREFIX}_") + label] = sample.value
    return values


def test_everything_starts_at_zero(scraped: Any) -> None:
    _, read = scraped
    values = read()
    zero = ("members", "joins_total", "lease_expiries_total", "elections_total quorum")
    assert [values[name] for name in zero] == [0, 0, 0, 0]
    assert values["joins_refused_total fingerprint"] == 0
    assert (values["members_needed"], values["run_state waiting"]) == (2, 1)
    assert values["process_resident_memory_bytes"] > 0


def test_a_run_as_metrics_show_it(scraped: Any) -> None:
    running, read = scraped
    running.join(model_fingerprint=0, advertised_address="")
    assert (read()["candidates"], read()["members"]) == (1, 0)
    running.join("peer-0")
    running.join("peer-1")
    with pytest.raises(grpc.RpcError, match="model_fingerprint"):
        running.join("peer-2", model_fingerprint=1)
    elected = running.await_notice(Publication).elected
    running.renew("peer-0", step=5)
    running.renew("peer-1", step=7)
    values = read()
    assert (values["members"], values["joins_total"], values["lease_renewals_total"]) == (2, 2, 2)
    assert (values["epoch_term"], values["epoch_number"]) == (elected.term, 1)
    assert (values["epoch_members"], values["epoch_diameter_hops"]) == (2, 1)
    assert values["epoch_lr_factor"] == 1  # two peers are as fresh as all-reduce
    assert values["epoch_published_timestamp_seconds"] > 1_700_000_000
    assert (values["member_step_min"], values["member_step_max"]) == (5, 7)
    assert values["elections_total quorum"] == 1
    assert values["joins_refused_total fingerprint"] == 1
    assert (values["run_state waiting"], values["run_state running"]) == (0, 1)


def test_losses_by_reason(scraped: Any) -> None:
    running, read = scraped
    running.join("peer-0")
    running.join("peer-1")
    running.await_notice(Publication)
    running.leave("peer-0", finished=True)
    assert running.await_notice(Gone).reason is None
    running.await_notice(Gone)
    values = read()
    assert values["members_finished_total"] == 1
    assert values["lease_expiries_total"] == values["members_lost_total lease_expired"] == 1
    assert values["members_lost_total left"] == 0


def test_names_follow_the_conventions(scraped: Any) -> None:
    _, read = scraped
    names = {name.split()[0] for name in read() if not name.startswith(("process_", "python_"))}
    assert "epoch_published_timestamp_seconds" in names
    assert not {name for name in names if name.endswith(("_ms", "_percent", "_count"))}


def test_a_port_that_is_taken_is_an_error(scraped: Any) -> None:
    running, _ = scraped
    with pytest.raises(ConfigError, match=r"--metrics-listen.*cannot listen there.*port 0"):
        WebServer(make_wsgi_app(Metrics(running.conductor).registry), running.server.address)
    with pytest.raises(ConfigError, match=r"--metrics-listen.*HOST:PORT"):
        WebServer(make_wsgi_app(Metrics(running.conductor).registry), "9464")
