"""Options of the command line about TLS and tokens, the same for all commands that connect."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from relayswarm.net.clients import Clients

TlsCa: TypeAlias = Annotated[
    Path | None, typer.Option(help="PEM file of the CA whose certificates are believed.")
]
TlsCert: TypeAlias = Annotated[
    Path | None, typer.Option(help="PEM file of one's own certificate; its name is the peer's id.")
]
TlsKey: TypeAlias = Annotated[Path | None, typer.Option(help="PEM file of its private key.")]
TlsClients: TypeAlias = Annotated[
    Clients,
    typer.Option(
        help="Whether callers must show a certificate of the CA, and speak for its name only.",
    ),
]
TlsName: TypeAlias = Annotated[
    str | None,
    typer.Option(
        help="Name in the certificate of who is called, such as a peer's id.",
        show_default="its host",
    ),
]
TokensOfMembers: TypeAlias = Annotated[
    Path | None,
    typer.Option("--token-file", help="File of join tokens, one a line; read again on a change."),
]
Token: TypeAlias = Annotated[
    Path | None,
    typer.Option("--token-file", help="File whose first line is the coordinator's join token."),
]
HttpProxy: TypeAlias = Annotated[
    str,
    typer.Option(
        help="HOST:PORT of an HTTP proxy by which all others are reached (CONNECT).",
        show_default="none",
    ),
]
Insecure: TypeAlias = Annotated[
    bool,
    typer.Option("--insecure", help="Let --listen be open to other machines without TLS."),
]
InsecureHttp: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--insecure-http",
        help="Let --metrics-listen be open to other machines without TLS and token; --insecure "
        "includes it.",
    ),
]
