"""Settings of TLS: what goes together, what is refused, and what is open to whom."""

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from relayswarm.errors import ConfigError
from relayswarm.net.clients import Clients
from relayswarm.net.security import PLAIN, Security
from relayswarm.net.sockets import open_port

Certificates = Callable[..., Security]


@pytest.fixture
def server() -> Iterator[grpc.Server]:
    with ThreadPoolExecutor(1) as threads:
        server = grpc.server(threads)
        yield server
        server.stop(None)


def test_without_files_there_is_no_tls() -> None:
    assert PLAIN.server_credentials() is None
    assert PLAIN.channel_credentials() is None


@pytest.mark.parametrize(
    ("changes", "flag"),
    [
        ({"key": None}, "--tls-key"),
        ({"cert": None}, "--tls-cert"),
        ({"cert": None, "key": None}, "--tls-cert"),
        ({"ca": None}, "--tls-ca"),
    ],
)
def test_a_server_needs_a_whole_identity_and_a_ca(
    certificates: Certificates, changes: dict[str, None], flag: str
) -> None:
    with pytest.raises(ConfigError, match=flag):
        certificates("peer-0", **changes).server_credentials()


def test_a_server_that_takes_any_client_needs_no_ca(certificates: Certificates) -> None:
    security = certificates("coordinator", ca=None, clients=Clients.ANY)
    assert security.server_credentials() is not None


def test_a_client_needs_no_identity(certificates: Certificates) -> None:
    assert certificates("peer-0", cert=None, key=None).channel_credentials() is not None
    with pytest.raises(ConfigError, match="--tls-key"):
        certificates("peer-0", key=None).channel_credentials()


def test_files_that_do_not_belong_together_are_an_error(
    certificates: Certificates, tmp_path: Path
) -> None:
    other = certificates("peer-1").key
    with pytest.raises(ConfigError, match=r"--tls-cert = .*peer-0.*cannot be used.*certs"):
        certificates("peer-0", key=other).server_credentials()
    with pytest.raises(ConfigError, match=r"--tls-ca = .*none\.pem.*cannot be used"):
        certificates("peer-0", ca=tmp_path / "none.pem").channel_credentials()
    (tmp_path / "text.pem").write_text("no certificate")
    with pytest.raises(ConfigError, match=r"--tls-ca = .*text\.pem.*cannot be used"):
        certificates("peer-0", ca=tmp_path / "text.pem").channel_credentials()


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0", "peer.example:50051"])
def test_in_the_clear_a_port_is_for_this_machine_only(server: grpc.Server, listen: str) -> None:
    with pytest.raises(ConfigError, match=r"--listen = .*without TLS.*--insecure"):
        open_port(server, listen, PLAIN)


def test_who_says_insecure_is_warned(server: grpc.Server, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    assert open_port(server, "0.0.0.0:0", Security(insecure=True)).startswith("0.0.0.0:")
    (line,) = caplog.messages
    assert "0.0.0.0:0 is open to other machines without TLS" in line


def test_with_tls_a_port_may_be_open(
    server: grpc.Server, certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    assert open_port(server, "0.0.0.0:0", certificates("peer-0")).startswith("0.0.0.0:")
    assert not caplog.messages
