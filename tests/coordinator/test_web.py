"""What the coordinator serves over HTTP."""

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest

from coordinator.conductor import Publication
from coordinator.metrics import Metrics
from coordinator.web import POLICY, Elections, Site, WebServer


@pytest.fixture
def site(serve: Callable[..., Any]) -> Iterator[tuple[Any, str]]:
    """A coordinator of two peers, and the root of its site."""
    running = serve("peers = 2")
    elections, metrics = Elections(), Metrics(running.conductor)
    running.conductor.listeners[:0] = [metrics, elections]
    application = Site(running.conductor, elections, metrics.registry)
    with closing(WebServer(application, "127.0.0.1:0")) as server:
        yield running, f"http://{server.address}"


def get(address: str, method: str = "GET") -> tuple[str, Any]:
    """Body and headers."""
    request = urllib.request.Request(address, method=method)
    with urllib.request.urlopen(request, timeout=20.0) as response:
        return response.read().decode(), response.headers


def test_status_of_a_run_that_waits(site: Any) -> None:
    _, root = site
    status = json.loads(get(f"{root}/status.json")[0])
    assert (status["state"], status["members"], status["trees"]) == ("waiting", [], [])
    assert status["elections"] == []
    assert "peers = 2" in status["run_config"]


def test_status_tells_of_members_trees_and_elections(site: Any) -> None:
    running, root = site
    running.join("peer-0")
    running.join("peer-1")
    running.await_notice(Publication)
    running.renew("peer-0", step=5, loss=float("nan"))
    status = json.loads(get(f"{root}/status.json")[0])
    first = status["members"][0]
    assert (first["peer"], first["step"], first["loss"]) == ("peer-0", 5, None)
    assert [sorted(edge) for edge in status["trees"][0]] == [["peer-0", "peer-1"]]
    (election,) = status["elections"]
    assert (election["number"], election["members"]) == (1, 2)
    assert election["reason"] == status["reason"] != ""


def test_the_page_loads_nothing_from_elsewhere(site: Any) -> None:
    _, root = site
    page, headers = get(f"{root}/")
    assert headers["Content-Security-Policy"] == POLICY
    assert headers["Content-Type"].startswith("text/html")
    assert not [word for word in ("<link", "src=", "@import", "innerHTML") if word in page]


def test_metrics_and_health(site: Any) -> None:
    running, root = site
    assert "relayswarm_coordinator_members 0.0" in get(f"{root}/metrics")[0]
    assert get(f"{root}/healthz")[0] == "ok\n"
    running.conductor.failure = RuntimeError("a bug")
    with pytest.raises(urllib.error.HTTPError, match="503"):
        get(f"{root}/healthz")
    running.conductor.failure = None


@pytest.mark.parametrize(("path", "method", "code"), [("/x", "GET", "404"), ("/", "POST", "405")])
def test_anything_else_is_refused(site: Any, path: str, method: str, code: str) -> None:
    _, root = site
    with pytest.raises(urllib.error.HTTPError, match=code):
        get(root + path, method)
