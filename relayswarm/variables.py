"""Environment variables whose names begin with RELAYSWARM_: whose they are besides the settings'
(`relayswarm.settings`), and which of them stand for options of the command that runs.

A name with this prefix that is not told here is taken for a setting, and refused if it is none.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from typing import Any

PREFIX = "RELAYSWARM_"

LIFELINE = f"{PREFIX}LIFELINE"
"""Tells a child of `relayswarm up` that its standard input is its lifeline."""

COMMANDS = (
    "new",
    "check",
    "config",
    "up",
    "simulate",
    "report",
    "export",
    "reproduce",
    "coordinator",
    "peer",
    "status",
    "health",
    "doctor",
    "pull",
    "audit",
    "certs",
    "topology",
)
"""Of which RELAYSWARM_COMMAND_OPTION is an option: all that `relayswarm --help` lists."""

_OF_COMMANDS = tuple(f"{PREFIX}{command.upper()}_" for command in COMMANDS)

_OF_SERVICES = re.compile(
    rf"{PREFIX}(\w+_)?"
    r"(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)"
)
"""What Kubernetes tells a container of services whose names begin with `relayswarm`."""

_given: dict[str, str] = {}


def is_of_others(name: str) -> bool:
    """Whether a variable with our prefix is known as something else than a setting."""
    return (
        name == LIFELINE
        or name.startswith(_OF_COMMANDS)
        or _OF_SERVICES.fullmatch(name) is not None
    )


def look_up(command: str, parameters: Iterable[Any], words: Sequence[str]) -> None:
    """Have options that are not among the words of the command line looked up as
    RELAYSWARM_COMMAND_OPTION.

    The variable is named after the option as it is typed, not after our parameter.
    """
    _given.clear()
    for parameter in parameters:
        flag = max(parameter.opts, key=len)
        if not flag.startswith("--"):
            continue
        name = f"{PREFIX}{command}_{flag.removeprefix('--')}".replace("-", "_").upper()
        parameter.envvar = name
        typed = any(word == flag or word.startswith(f"{flag}=") for word in words)
        if os.environ.get(name) and not typed:
            _given[parameter.name] = name


def giving(parameter: str) -> str | None:
    """The variable that gives a parameter of the command that runs its value, if one does."""
    return _given.get(parameter)
