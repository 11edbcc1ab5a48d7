"""The commands `relayswarm coordinator` and `relayswarm status`.

What belongs here: options, and exit codes. Imports that take time are inside the functions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from relayswarm import logs
from relayswarm.errors import RelayswarmError
from relayswarm.logs import LogFormat, LogFormatOption
from relayswarm.net.clients import Clients
from relayswarm.net.flags import (
    Insecure,
    InsecureHttp,
    TlsCa,
    TlsCert,
    TlsClients,
    TlsKey,
    TlsName,
    Token,
    TokensOfMembers,
)


def coordinator(
    config: Annotated[
        Path | None,
        typer.Option(help="Run config (TOML); left out: defaults, or the run in the store."),
    ] = None,
    listen: Annotated[
        str, typer.Option(help="HOST:PORT for peers; port 0 takes any free one.")
    ] = "127.0.0.1:50050",
    metrics_listen: Annotated[
        str, typer.Option(help="HOST:PORT for page and metrics; port 0 takes any free one.")
    ] = "127.0.0.1:0",
    store: Annotated[
        str | None,
        typer.Option(
            metavar="PATH | etcd://HOST:PORT",
            help="SQLite file that survives a restart, or an etcd: of several coordinators with "
            "the same one leads, and another takes over.",
            show_default="in memory",
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Override a setting: section.key=value. May be repeated."),
    ] = None,
    reflection: Annotated[
        bool, typer.Option("--reflection", help="Serve gRPC reflection, for grpcurl and the like.")
    ] = False,
    exit_when_finished: Annotated[
        bool, typer.Option("--exit-when-finished", help="End when the run has finished.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Write events to standard output, one JSON object each.")
    ] = False,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    tls_clients: TlsClients = Clients.REQUIRED,
    token_file: TokensOfMembers = None,
    insecure: Insecure = False,
    insecure_http: InsecureHttp = False,
    log_format: LogFormatOption = LogFormat.AUTO,
) -> None:
    """Introduce peers to each other and keep their topology, for one run."""
    from coordinator.runner import Options, serve
    from relayswarm.net.security import Security
    from relayswarm.settings import overrides_in_force

    logs.configure(log_format, tells_events=as_json)
    options = Options(
        config=config,
        overrides=tuple(overrides_in_force(set_, {})),
        listen=listen,
        metrics_listen=metrics_listen,
        store=store,
        reflection=reflection,
        json=as_json,
        exit_when_finished=exit_when_finished,
        security=Security(tls_ca, tls_cert, tls_key, tls_clients, token_file, insecure),
        insecure_http=insecure_http,
    )
    try:
        code = serve(options)
    except RelayswarmError as error:
        raise _failed(error) from error
    raise typer.Exit(code)


def status(
    coordinator: Annotated[
        str, typer.Option(help="HOST:PORT of the coordinator.")
    ] = "127.0.0.1:50050",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    tls_name: TlsName = None,
    token_file: Token = None,
) -> None:
    """Show how a run is doing: its members, their steps, and the tree."""
    from coordinator.status import fetch, show, to_json
    from relayswarm.net.security import Security

    try:
        answer = fetch(
            coordinator,
            Security(tls_ca, tls_cert, tls_key, token_file=token_file, name=tls_name),
        )
    except RelayswarmError as error:
        raise _failed(error) from error
    if as_json:
        typer.echo(to_json(answer))
    else:
        show(answer)


def health(
    address: Annotated[str, typer.Argument(metavar="HOST:PORT", help="Of a coordinator or peer.")],
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for an answer.")] = 5.0,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    tls_name: TlsName = None,
) -> None:
    """Ask whether a coordinator or peer serves, by the gRPC health protocol."""
    from coordinator.health import check_health
    from relayswarm.net.security import Security

    check_health(address, timeout, Security(tls_ca, tls_cert, tls_key, name=tls_name))
    typer.echo(f"{address} serves")


def _failed(error: RelayswarmError) -> typer.Exit:
    logs.fatal(error)
    return typer.Exit(error.exit_code)
