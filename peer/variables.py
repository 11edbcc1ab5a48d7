"""Environment variables that stand for options of the command that runs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

_given: dict[str, str] = {}


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
        name = f"RELAYSWARM_{command}_{flag.removeprefix('--')}".replace("-", "_").upper()
        parameter.envvar = name
        typed = any(word == flag or word.startswith(f"{flag}=") for word in words)
        if os.environ.get(name) and not typed:
            _given[parameter.name] = name


def giving(parameter: str) -> str | None:
    """The variable that gives a parameter of the command that runs its value, if one does."""
    return _given.get(parameter)
