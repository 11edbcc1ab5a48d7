"""The command `doctor`: can this machine take part in that swarm, and if not, what to do."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from peer.commands import DataDir, Device, Overrides, PrintJson
from relayswarm.errors import ExitCode
from relayswarm.net.flags import Insecure, TlsCa, TlsCert, TlsKey, Token
from relayswarm.settings import load_over, overrides_in_force


def doctor(
    config: Annotated[
        Path | None,
        typer.Argument(metavar="RUN.TOML", help="Also try out this run's task, as `check` does."),
    ] = None,
    coordinator: Annotated[
        str, typer.Option(help="HOST:PORT of the run's coordinator.")
    ] = "127.0.0.1:50050",
    peer_id: Annotated[str, typer.Option("--id", help="Id of the peer to be.")] = "",
    listen: Annotated[
        str, typer.Option(help="HOST:PORT where the peer is going to listen.")
    ] = "127.0.0.1:0",
    advertise: Annotated[
        str,
        typer.Option(help="HOST:PORT at which others reach it.", show_default="where it listens"),
    ] = "",
    device: Device = "auto",
    data_dir: DataDir = None,
    state_dir: Annotated[Path | None, typer.Option(help="Folder for checkpoints.")] = None,
    set_: Overrides = None,
    as_json: PrintJson = False,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    token_file: Token = None,
    insecure: Insecure = False,
) -> None:
    """Say what would keep this machine from taking part in a run, and what to do about it.

    Give the options that the peer is going to have.
    """
    run = load_over(config, overrides_in_force(set_, {})) if config else None
    from peer.examination import Check, Patient, Verdict, examine
    from relayswarm.net.security import Security

    patient = Patient(
        coordinator=coordinator,
        peer_id=peer_id,
        listen=listen,
        advertise=advertise,
        device=device,
        data_dir=data_dir,
        state_dir=state_dir,
        security=Security(tls_ca, tls_cert, tls_key, token_file=token_file, insecure=insecure),
        config=run,
    )
    checks: list[Check] = []
    for check in examine(patient):
        checks.append(check)
        if not as_json:
            typer.echo(f"{check.verdict.value:<8} {check.name}: {check.found}")
            if check.remedy:
                typer.echo(f"{'':<8} -> {check.remedy}")
    if as_json:
        typer.echo(json.dumps({"checks": [asdict(check) for check in checks]}))
    failed = [check.name for check in checks if check.verdict is Verdict.FAILED]
    if "coordinator" in failed:
        raise typer.Exit(ExitCode.COULD_NOT_JOIN)
    raise typer.Exit(ExitCode.FAILED if failed else ExitCode.DONE)
