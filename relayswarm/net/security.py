"""What the command line says about TLS and join tokens, and the credentials that follow from it."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc

from relayswarm.errors import ConfigError
from relayswarm.net.clients import Clients
from relayswarm.net.tokens import TokenFile


@dataclass(frozen=True, slots=True)
class Security:
    """How a process proves who it is, and whom it believes. Without files: in the clear.

    `name` is what the certificate of a server must hold in place of its host. `proxy` is HOST:PORT
    of an HTTP proxy by which all connections are made (CONNECT); TLS goes through it whole.
    """

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    clients: Clients = Clients.REQUIRED
    token_file: Path | None = None
    insecure: bool = False
    name: str | None = None
    proxy: str = ""

    @property
    def encrypts(self) -> bool:
        """Whether there is any TLS."""
        return self.ca is not None or self.cert is not None or self.key is not None

    @property
    def knows_both_ends(self) -> bool:
        """Whether each end of a connection knows the other by its certificate."""
        return self.encrypts and self.clients is Clients.REQUIRED

    def tokens(self) -> TokenFile | None:
        """The file of join tokens, if there is one. Raises ConfigError if it is unusable."""
        return None if self.token_file is None else TokenFile(self.token_file)

    def server_credentials(self) -> grpc.ServerCredentials | None:
        """For a port; None: in the clear. Raises ConfigError for files that do not do."""
        if not self.encrypts:
            return None
        if self.cert is None:
            raise _missing("--tls-cert", "a server with TLS needs a certificate and its key")
        roots = self._roots() if self.clients is Clients.REQUIRED else None
        if self.clients is Clients.REQUIRED and roots is None:
            raise ConfigError(
                "--tls-ca",
                None,
                "missing, but callers' certificates are to be checked",
                "name the CA's certificate, or say --tls-clients any",
            )
        return grpc.ssl_server_credentials([self._identity()], roots, roots is not None)

    def https_context(self) -> ssl.SSLContext:
        """For an HTTP server with this certificate, which asks for none of a browser's. Raises
        ConfigError for files that do not do."""
        if self.cert is None or self.key is None:
            raise _missing("--tls-cert", "a server with TLS needs a certificate and its key")
        self._identity()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.cert, self.key)
        return context

    def channel_credentials(self) -> grpc.ChannelCredentials | None:
        """For a connection; None: in the clear. Raises ConfigError for files that do not do."""
        if not self.encrypts:
            return None
        key, chain = (None, None) if self.cert is None and self.key is None else self._identity()
        return grpc.ssl_channel_credentials(self._roots(), key, chain)

    def _roots(self) -> bytes | None:
        if self.ca is None:
            return None
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(self.ca)
        except (OSError, ssl.SSLError) as error:
            raise _unusable("--tls-ca", self.ca, error) from error
        return self.ca.read_bytes()

    def _identity(self) -> tuple[bytes, bytes]:
        """Private key and certificate chain."""
        if self.cert is None or self.key is None:
            missing = "--tls-key" if self.key is None else "--tls-cert"
            raise _missing(missing, "a certificate and its key go together")
        try:
            # A key with a passphrase is refused; nobody is there to type it.
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self.cert, self.key, password=_no_passphrase)
        except (OSError, ssl.SSLError) as error:
            raise _unusable("--tls-cert", self.cert, error) from error
        return self.key.read_bytes(), self.cert.read_bytes()


PLAIN = Security()
"""In the clear: for loopback, and networks that are trusted."""


def _no_passphrase() -> str:
    raise ssl.SSLError("the key has a passphrase")


def _missing(flag: str, problem: str) -> ConfigError:
    return ConfigError(flag, None, problem, "give both; `relayswarm certs` makes some")


def _unusable(flag: str, path: Path, error: OSError) -> ConfigError:
    why = error.strerror or str(error)
    remedy = "name PEM files that belong together; `relayswarm certs` makes some"
    return ConfigError(flag, str(path), f"cannot be used ({why})", remedy)
