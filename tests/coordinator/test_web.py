"""What the coordinator serves over HTTP."""

import base64
import http.client
import json
import socket
import ssl
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from coordinator.conductor import Denied, Publication
from coordinator.metrics import Metrics
from coordinator.web import POLICY, Door, Elections, Site, WebServer, door
from relayswarm.errors import ConfigError
from relayswarm.net.gate import Denial
from relayswarm.net.security import PLAIN, Security


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


@pytest.mark.parametrize("listen", ["127.0.0.1:0", "localhost:0", "[::1]:0"])
def test_on_loopback_nothing_is_asked_for(listen: str) -> None:
    assert door(listen, PLAIN) == Door()


@pytest.mark.parametrize("listen", ["0.0.0.0:9100", "[::]:9100", "coordinator.example:9100"])
def test_open_to_others_it_takes_tls_and_a_token(
    listen: str, certificates: Callable[..., Security], tokens: Path
) -> None:
    for lacking in (PLAIN, Security(token_file=tokens), certificates("coordinator")):
        with pytest.raises(
            ConfigError, match=r"--metrics-listen.*TLS and a token.*--insecure-http"
        ):
            door(listen, lacking)
    both = door(listen, certificates("coordinator", token_file=tokens))
    assert both.context
    assert both.tokens


def test_whoever_says_so_gets_it_open(
    certificates: Callable[..., Security], caplog: pytest.LogCaptureFixture
) -> None:
    assert door("0.0.0.0:9100", Security(insecure=True)) == Door()
    assert door("0.0.0.0:9100", certificates("coordinator"), insecure=True) == Door()
    assert caplog.text.count("0.0.0.0:9100 is open to other machines") == 2


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    path = tmp_path / "tokens"
    path.write_text("0123456789abcdef\nanother-0123456789\n", encoding="ascii")
    return path


@pytest.fixture
def guarded(
    serve: Callable[..., Any], certificates: Callable[..., Security], tokens: Path
) -> Iterator[tuple[Any, str, ssl.SSLContext]]:
    """A coordinator whose site asks for a token over TLS; its root, and whom to believe."""
    running = serve("peers = 2")
    security = certificates("coordinator", token_file=tokens)
    entry = door("0.0.0.0:0", security)
    metrics = Metrics(running.conductor)
    running.conductor.listeners.insert(0, metrics)
    site = Site(running.conductor, Elections(), metrics.registry, entry.tokens)
    with closing(WebServer(site, "127.0.0.1:0", entry.context)) as server:
        believed = ssl.create_default_context(cafile=security.ca)
        yield running, server.url, believed


@pytest.mark.parametrize(
    "shown",
    [
        "Bearer another-0123456789",
        "Basic " + base64.b64encode(b"anybody:0123456789abcdef").decode(),
    ],
)
def test_who_shows_a_token_is_let_in(guarded: Any, shown: str) -> None:
    _, root, believed = guarded
    assert root.startswith("https://")
    for path in ("/", "/metrics", "/status.json", "/healthz"):
        request = urllib.request.Request(root + path, headers={"Authorization": shown})
        with urllib.request.urlopen(request, timeout=20.0, context=believed) as response:
            assert response.status == 200


@pytest.mark.parametrize(
    "shown", ["", "Bearer wrong-0123456789ab", "Basic %%%", "Basic bm9ib2R5", "Digest x"]
)
@pytest.mark.parametrize("path", ["/", "/metrics", "/status.json", "/healthz"])
def test_who_shows_none_sees_nothing(guarded: Any, shown: str, path: str) -> None:
    running, root, believed = guarded
    request = urllib.request.Request(root + path, headers={"Authorization": shown})
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=20.0, context=believed)
    assert refused.value.code == 401
    assert "Basic" in refused.value.headers["WWW-Authenticate"]
    assert refused.value.read() == b"show a token\n"
    assert running.await_notice(Denied).denial is Denial.TOKEN


def test_who_speaks_no_tls_holds_nobody_up(guarded: Any) -> None:
    _, root, believed = guarded
    host, port = root.removeprefix("https://").split(":")
    with socket.create_connection((host, int(port)), timeout=20.0):  # and never says a word
        with pytest.raises((urllib.error.URLError, ConnectionError, http.client.HTTPException)):
            urllib.request.urlopen(root.replace("https", "http"), timeout=20.0)
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(root, timeout=20.0, context=believed)
