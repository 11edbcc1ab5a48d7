"""What the coordinator serves over HTTP: a page for people, its data, metrics and health.

What belongs here: paths and answers. The page holds no data; it asks for `/status.json`. It loads
nothing from elsewhere, and its policy forbids that.
"""

from __future__ import annotations

import base64
import binascii
import json
import logging
import ssl
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.resources import files
from socket import AF_INET6
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app

from coordinator.conductor import Conductor, Denied, Notice, Publication
from coordinator.messages import reason_text
from coordinator.service import status_of
from coordinator.status import to_dict
from relayswarm.errors import ConfigError
from relayswarm.net.address import is_loopback, split_address
from relayswarm.net.gate import Denial
from relayswarm.net.security import Security
from relayswarm.net.tokens import HEADER, SCHEME, TokenFile

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

log = logging.getLogger("relayswarm.coordinator")

KEPT_ELECTIONS = 10
CHALLENGE = ("WWW-Authenticate", 'Basic realm="relayswarm: any name, and a token as password"')
POLICY = (
    "default-src 'none'; connect-src 'self'; script-src 'unsafe-inline'; style-src 'unsafe-inline'"
)


@dataclass(frozen=True, slots=True)
class Door:
    """What a caller has to bring: TLS, and a token. Neither where only this machine calls, or
    somebody has said that this is meant."""

    tokens: TokenFile | None = None
    context: ssl.SSLContext | None = None


def door(listen: str, security: Security, *, insecure: bool = False) -> Door:
    """What it takes to be let in at `listen`. Raises ConfigError if that would be open to other
    machines without TLS and a token, and nobody has said that this is meant."""
    host, _ = split_address(listen, "--metrics-listen")
    if is_loopback(host):
        return Door()
    if insecure or security.insecure:
        log.warning(
            "%s is open to other machines: whoever reaches it sees page and metrics", listen
        )
        return Door()
    tokens = security.tokens()
    if not security.encrypts or tokens is None:
        raise ConfigError(
            "--metrics-listen",
            listen,
            "other machines could reach page, metrics and status, without TLS and a token",
            "give --tls-cert, --tls-key and --token-file, listen at 127.0.0.1, or say "
            "--insecure-http in a network that you trust",
        )
    return Door(tokens, security.https_context())


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
        self,
        conductor: Conductor,
        elections: Elections,
        registry: CollectorRegistry,
        tokens: TokenFile | None = None,
    ) -> None:
        self._conductor, self._elections, self._tokens = conductor, elections, tokens
        self._metrics: WSGIApplication = make_wsgi_app(registry)
        self._page = files("coordinator").joinpath("page.html").read_bytes()

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        path = environ.get("PATH_INFO", "/")
        if self._tokens and not self._tokens.accepts(((HEADER, _shown(environ)),)):
            self._conductor.tell(Denied(Denial.TOKEN, f"no valid token for {path[:64]!r}"))
            return _answer(start_response, "401 Unauthorized", b"show a token\n", more=[CHALLENGE])
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


def _shown(environ: WSGIEnvironment) -> str:
    """The token that a caller shows: as Prometheus does, or as a browser's password."""
    given: str = environ.get("HTTP_AUTHORIZATION", "")
    kind, _, coded = given.partition(" ")
    if kind != "Basic":
        return given
    try:
        return SCHEME + base64.b64decode(coded).decode().partition(":")[2]
    except (binascii.Error, ValueError):
        return ""


def _answer(
    start_response: StartResponse,
    status: str,
    body: bytes,
    kind: str = "text/plain",
    more: Iterable[tuple[str, str]] = (),
) -> Iterable[bytes]:
    headers = [
        *more,
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
    context: ssl.SSLContext | None = None

    def get_request(self) -> Any:
        """The next connection. Its handshake is its own thread's: nobody waits for a slow one."""
        connection, address = super().get_request()
        if self.context is None:
            return connection, address
        wrapped = self.context.wrap_socket(
            connection, server_side=True, do_handshake_on_connect=False
        )
        return wrapped, address

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        """A caller that hung up, or spoke no TLS."""
        log.debug("a call by HTTP from %s failed", client_address, exc_info=True)


class _ThreadedIPv6(_Threaded):
    address_family = AF_INET6


class _Quiet(WSGIRequestHandler):
    timeout = 10.0

    def log_message(self, format: str, *args: Any) -> None:
        """A page that asks every second is no news."""


class WebServer:
    """Serves an application over HTTP until closed."""

    def __init__(
        self, application: WSGIApplication, listen: str, context: ssl.SSLContext | None = None
    ) -> None:
        """Bind `listen` (HOST:PORT, port 0: any free one), with TLS if there is a `context`. Raises
        ConfigError if it is taken."""
        host, port = split_address(listen, "--metrics-listen")
        bare = host.strip("[]")
        kind = _ThreadedIPv6 if ":" in bare else _Threaded
        try:
            self._server: _Threaded = make_server(bare, port, application, kind, _Quiet)
        except OSError as error:
            problem = f"cannot listen there ({error.strerror or error})"
            remedy = "give another HOST:PORT for --metrics-listen; port 0 takes any free one"
            raise ConfigError("--metrics-listen", listen, problem, remedy) from error
        self._server.context = context
        self._thread = threading.Thread(target=self._server.serve_forever, name="http", daemon=True)
        self._thread.start()
        self.address = f"{host}:{self._server.server_port}"
        self.url = f"{'https' if context else 'http'}://{self.address}"

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
