"""Finds a task by its name: a built-in one, or one that an installed package offers.

A package offers a task as an entry point in the group `relayswarm.tasks`, whose name is the
task's and whose value is the class. Built-in names go first. Nothing is imported but the task
that was asked for.
"""

from __future__ import annotations

from importlib import import_module

from peer.offers import Offers
from relayswarm.config import TaskConfig
from relayswarm.errors import ConfigError
from relayswarm.task import Task

OFFERS = Offers(group="relayswarm.tasks", field="task.name", noun="task")

BUILT_IN = {
    "digits": "peer.tasks.digits:Digits",
    "fashion-mnist": "peer.tasks.fashion_mnist:FashionMnist",
    "quadratics": "peer.tasks.quadratics:Quadratics",
}


def known_tasks() -> list[str]:
    """Names of all tasks that this installation has, in alphabetical order."""
    return OFFERS.known(BUILT_IN)


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
    return OFFERS.load(name, BUILT_IN)
