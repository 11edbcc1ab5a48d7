"""What the coordinator serves over HTTP: a page for people, its data, metrics and health.

What belongs here: paths and answers. The page holds no data; it asks for `/status.json`. It loads
nothing from elsewhere, and its policy forbids that.
"""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from importlib.resources import files
from socket import AF_INET6
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app

from coordinator.conductor import Conductor, Notice, Publication
from coordinator.messages import reason_text
from coordinator.service import status_of
from coordinator.status import to_dict
from relayswarm.errors import ConfigError
from relayswarm.net.address import split_address

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

KEPT_ELECTIONS = 10
POLICY = (
    "default-src 'none'; connect-src 'self'; script-src 'unsafe-inline'; style-src 'unsafe-inline'"
)


class Elections:
    """A listener of the conductor that remembers the last elections, the latest first."""

    def __init__(self) -> None:
        self._kept: deque[dict[str, Any]] = deque(maxlen=KEPT_ELECTIONS)

    def __call__(self, notice: Notice) -> None:
        """Take note."""
        if not isinstance(notice, Publication):
            return
        elected = notice.elected
        self._kept.appendleft(
            {
                "time": time.time(),
                "term": elected.term,
                "number": elected.number,
                "effective_step": elected.effective_step,
                "members": len(elected.members),
                "reason": reason_text(elected, notice.layout),
            }
        )

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(tuple(self._kept))


class Site:
    """The coordinator's paths, as a WSGI application."""

    def __init__(
        self, conductor: Conductor, elections: Elections, registry: CollectorRegistry
    ) -> None:
        self._conductor, self._elections = conductor, elections
        self._metrics: WSGIApplication = make_wsgi_app(registry)
        self._page = files("coordinator").joinpath("page.html").read_bytes()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        path = environ.get("PATH_INFO", "/")
        if environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            return _answer(start_response, "405 Method Not Allowed", b"only GET\n")
        if path == "/metrics":
            return self._metrics(environ, start_response)
        if path == "/":
            return _answer(start_response, "200 OK", self._page, "text/html; charset=utf-8")
        if path == "/status.json":
            body = json.dumps(self._status(), allow_nan=False).encode()
            return _answer(start_response, "200 OK", body, "application/json")
        if path == "/healthz":
            return self._health(start_response)
        return _answer(
            start_response, "404 Not Found", b"see /, /status.json, /metrics, /healthz\n"
        )

    def _status(self) -> dict[str, Any]:
        status = status_of(self._conductor)
        more = {"run_config": status.run_config, "elections": list(self._elections)}
        return to_dict(status) | more

    def _health(self, start_response: StartResponse) -> Iterable[bytes]:
        failure = self._conductor.failure
        if failure is None:
            return _answer(start_response, "200 OK", b"ok\n")
        return _answer(start_response, "503 Service Unavailable", b"membership has failed\n")


def _answer(
    start_response: StartResponse, status: str, body: bytes, kind: str = "text/plain"
) -> Iterable[bytes]:
    headers = [
        ("Content-Type", kind),
        ("Content-Length", str(len(body))),
        ("Cache-Control", "no-store"),
        ("Content-Security-Policy", POLICY),
        ("X-Content-Type-Options", "nosniff"),
    ]
    start_response(status, headers)
    return [body]


class _Threaded(ThreadingMixIn, WSGIServer):
    daemon_threads = True  # a browser that does not hang up holds nobody up


class _ThreadedIPv6(_Threaded):
    address_family = AF_INET6


class _Quiet(WSGIRequestHandler):
    timeout = 10.0

    def log_message(self, format: str, *args: Any) -> None:
        """A page that asks every second is no news."""


class WebServer:
    """Serves an application over HTTP until closed."""

    def __init__(self, application: WSGIApplication, listen: str) -> None:
        """Bind `listen` (HOST:PORT, port 0: any free one). Raises ConfigError if it is taken."""
        host, port = split_address(listen, "--metrics-listen")
        bare = host.strip("[]")
        kind = _ThreadedIPv6 if ":" in bare else _Threaded
        try:
            self._server = make_server(bare, port, application, kind, _Quiet)
        except OSError as error:
            problem = f"cannot listen there ({error.strerror or error})"
            remedy = "give another HOST:PORT for --metrics-listen; port 0 takes any free one"
            raise ConfigError("--metrics-listen", listen, problem, remedy) from error
        self._thread = threading.Thread(target=self._server.serve_forever, name="http", daemon=True)
        self._thread.start()
        self.address = f"{host}:{self._server.server_port}"

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
