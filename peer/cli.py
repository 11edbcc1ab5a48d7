"""The command `relayswarm`.

What belongs here: which commands there are, and how each ends. A command's own module is imported
only when it is called, so that `relayswarm --help` answers at once. Everything a user can mend
ends as one line on standard error and an exit code; only our own bugs show a traceback.
"""

from __future__ import annotations

import errno
import functools
import os
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Annotated, Any

import typer
import typer.main

from peer.localswarm.process import end_with_parent
from relayswarm import __version__, logs, variables
from relayswarm.errors import ConfigError, ExitCode, RelayswarmError

Command = Callable[..., None]

COMMANDS: Mapping[str, tuple[str, str]] = {
    "new": ("peer.newtask.command:new", "Write a folder with a task of your own to begin with."),
    "check": ("peer.check:check", "Find what is wrong with a run and its task, in seconds."),
    "config": ("peer.show_config:config", "Show every setting, and where it comes from."),
    "up": ("peer.commands:up", "Run a whole swarm on this machine and report on it."),
    "simulate": (
        "peer.sweep.command:simulate",
        "Run a swarm in one process, without a network, or a whole sweep of them.",
    ),
    "report": ("peer.page.page:report", "Draw a report as one page with pictures."),
    "export": ("peer.export:export", "Write one of a report's models into a file."),
    "reproduce": ("peer.reproduce:reproduce", "Run a report's run again and compare."),
    "coordinator": (
        "coordinator.cli:coordinator",
        "Introduce the peers of a run to each other.",
    ),
    "peer": ("peer.commands:peer", "Join a run and train in it."),
    "status": (
        "coordinator.cli:status",
        "Show how a run is doing.",
    ),
    "health": ("coordinator.cli:health", "Ask whether a coordinator or peer serves."),
    "doctor": ("peer.doctor:doctor", "Say what would keep this machine from taking part."),
    "pull": ("peer.commands:pull", "Fetch the present model of a running peer."),
    "audit": ("peer.audit_command:audit", "Check the record of what left a site."),
    "certs": ("relayswarm.net.cli:certs", "Make certificates for development."),
    "topology": (
        "coordinator.topology_cli:topology",
        "Show the tree that a communication graph would give.",
    ),
}


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit the process with its code."""
    end_with_parent()
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # errors are ours to tell, in one line
    given = sys.argv[1:] if arguments is None else arguments
    called = next((word for word in given if not word.startswith("-")), None)
    command: Any = typer.main.get_command(build_app(called))
    if called is not None and called in COMMANDS:
        variables.look_up(called, command.commands[called].params, given)
    command(args=given, prog_name="relayswarm")


def build_app(called: str | None) -> typer.Typer:
    """The application, of which only the command that is called is there in full."""
    app = typer.Typer(
        add_completion=False,
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        help="Peers train one PyTorch model together by relaying sums of models along a tree.",
    )
    app.callback()(_root)
    for name, (place, text) in COMMANDS.items():
        function = _guarded(_load(place)) if name == called else _elsewhere
        app.command(name, help=text)(function)
    return app


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"relayswarm {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_show_version,
            is_eager=True,
            help="Show the version and exit.",
        ),
    ] = False,
) -> None:
    """Options before a command."""


def _elsewhere() -> None:
    """Stands for the commands that are not called."""


def _load(place: str) -> Command:
    module, _, name = place.partition(":")
    command: Command = getattr(import_module(module), name)
    return command


def _guarded(command: Command) -> Command:
    """The one place where errors become a line and an exit code."""

    @functools.wraps(command)
    def guarded(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except RelayswarmError as error:
            logs.fatal(error)
            raise typer.Exit(error.exit_code) from error
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            remedy = "raise the limit (ulimit -n), or end what holds them"
            logs.fatal(ConfigError("file descriptors", "none left", str(error), remedy))
            raise typer.Exit(ExitCode.USAGE) from error
        except KeyboardInterrupt as error:
            raise typer.Exit(ExitCode.INTERRUPTED) from error

    return guarded


if __name__ == "__main__":
    main()
