"""The command `audit`: is a site's record of what left still what was written?"""

from __future__ import annotations

import json
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from peer.commands import PrintJson
from relayswarm.errors import ConfigError, ExitCode


class Action(StrEnum):
    """What to do with the file."""

    VERIFY = "verify"


def audit(
    action: Annotated[
        Action, typer.Argument(metavar="verify", help="Follow the chain of records.")
    ],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A peer's audit.jsonl.")],
    contains: Annotated[
        str, typer.Option(help="A digest noted earlier, which must still be in the chain.")
    ] = "",
    as_json: PrintJson = False,
) -> None:
    """Find a record that was changed, removed, inserted or moved; exit code 1 if there is one."""
    from peer.audit import BrokenChainError, verify

    del action  # there is one
    try:
        with file.open("rb") as lines:
            found = verify(lines, contains or None)
    except OSError as error:
        problem = f"cannot be read ({error.strerror or error})"
        raise ConfigError("FILE", str(file), problem, "check the path") from error
    except BrokenChainError as error:
        _fail(str(file), str(error), as_json)
    if not found.holds:
        _fail(str(file), f"the digest {contains} is not in it: records were cut off", as_json)
    if as_json:
        typer.echo(
            json.dumps({"event": "audit", "file": str(file), "whole": True, **asdict(found)})
        )
        return
    counts = ", ".join(f"{count} {event}" for event, count in sorted(found.events.items()))
    typer.echo(f"{file}: {found.records} records, a whole chain ({counts or 'empty'})")
    if found.torn_bytes:
        typer.echo(
            f"warning: its last line is torn ({found.torn_bytes} bytes), as a crash leaves it",
            err=True,
        )
    typer.echo(f"last digest: {found.head}")


def _fail(file: str, problem: str, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({"event": "audit", "file": file, "whole": False, "problem": problem}))
    else:
        typer.echo(f"error: {file}: {problem}", err=True)
    raise typer.Exit(ExitCode.FAILED)
