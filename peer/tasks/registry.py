"""Finds a task by its name: a built-in one, or one that an installed package offers.

A package offers a task as an entry point in the group `relayswarm.tasks`, whose name is the
task's and whose value is the class. Built-in names go first. Nothing is imported but the task
that was asked for.
"""

from __future__ import annotations

import difflib
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points

from relayswarm.config import TaskConfig
from relayswarm.errors import ConfigError
from relayswarm.task import Task

GROUP = "relayswarm.tasks"

BUILT_IN = {
    "digits": "peer.tasks.digits:Digits",
    "fashion-mnist": "peer.tasks.fashion_mnist:FashionMnist",
    "quadratics": "peer.tasks.quadratics:Quadratics",
}


def known_tasks() -> list[str]:
    """Names of all tasks that this installation has, in alphabetical order."""
    return sorted({*BUILT_IN, *(entry.name for entry in entry_points(group=GROUP))})


def load_task(config: TaskConfig) -> Task:
    """The task that the config names, with its options.

    Raises ConfigError for an unknown name, a task that cannot be imported, and wrong options.
    """
    kind = _find(config.name)
    if not (isinstance(kind, type) and issubclass(kind, Task)):
        raise ConfigError(
            "task.name", config.name, f"names {kind!r}, not a task", "derive from relayswarm.Task"
        )
    return kind(config.options)


def _find(name: str) -> object:
    if name in BUILT_IN:
        module, _, attribute = BUILT_IN[name].partition(":")
        return getattr(import_module(module), attribute)
    offered = list(entry_points(group=GROUP, name=name))
    if not offered:
        raise _unknown(name)
    return _imported(offered[0])


def _imported(entry: EntryPoint) -> object:
    try:
        return entry.load()
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            "task.name",
            entry.name,
            f"cannot be imported from {entry.value} ({error})",
            "mend or reinstall the package that offers it",
        ) from error


def _unknown(name: str) -> ConfigError:
    known = known_tasks()
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return ConfigError("task.name", name, "unknown task", f"{hint}known: {', '.join(known)}")
