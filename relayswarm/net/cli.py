"""The command `relayswarm certs`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def certs(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder for the files.")],
    peers: Annotated[int, typer.Option(min=0, help="Certificates for peer-0, peer-1, ...")] = 0,
    ids: Annotated[
        list[str] | None,
        typer.Option("--id", help="And for this peer, or person who asks. May be repeated."),
    ] = None,
    hosts: Annotated[
        list[str] | None,
        typer.Option("--host", help="Where peers call the coordinator. May be repeated."),
    ] = None,
    days: Annotated[int, typer.Option(min=1, help="How long they are valid.")] = 365,
) -> None:
    """Make a certificate authority for development, and certificates of it."""
    from relayswarm.net.certificates import make_certificates

    names = [*(f"peer-{number}" for number in range(peers)), *(ids or ())]
    for made in make_certificates(folder, names, hosts or (), days):
        typer.echo(f"{made.path}{': was there already' if made.kept else ''}")
