"""The command `config`: what is in force, and where each setting comes from."""

from __future__ import annotations

import json
from dataclasses import asdict
from enum import StrEnum
from typing import Annotated

import typer

from peer.commands import ConfigFile, Overrides, PrintJson
from relayswarm.settings import in_force, load_over, overrides_in_force, shown


class Action(StrEnum):
    """What to do with a run config."""

    SHOW = "show"


def config(
    action: Annotated[Action, typer.Argument(metavar="show", help="Print every setting.")],
    file: ConfigFile = None,
    set_: Overrides = None,
    as_json: PrintJson = False,
) -> None:
    """Print every setting of a run and where it comes from: default, file, variable, --set."""
    del action  # there is one
    overrides = overrides_in_force(set_, {})
    settings = in_force(file, overrides)
    if as_json:
        typer.echo(json.dumps({"settings": [asdict(setting) for setting in settings]}))
        return
    rows = [(setting.key, shown(setting.value), setting.source) for setting in settings]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    for key, value, source in rows:
        typer.echo(f"{key:<{widths[0]}}  {value:<{min(widths[1], 40)}}  {source}")
    for warning in load_over(file, overrides).warnings:
        typer.echo(f"warning: {warning}", err=True)
