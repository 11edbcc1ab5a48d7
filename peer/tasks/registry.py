"""Finds a task by its name: a built-in one, one that an installed package offers, or one in a file.

A package offers a task as an entry point in the group `relayswarm.tasks`, whose name is the
task's and whose value is the class. Built-in names go first. Nothing is imported but the task
that was asked for.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from peer.offers import Offers
from peer.tasks.files import require_complete, task_class
from relayswarm.config import OWN_LOOP, TaskConfig
from relayswarm.errors import ConfigError
from relayswarm.task import Task

OFFERS = Offers(group="relayswarm.tasks", field="task.name", noun="task")

BUILT_IN = {
    "char-lm": "peer.tasks.char_lm:CharLm",
    "cifar-10": "peer.tasks.cifar10:Cifar10",
    "digits": "peer.tasks.digits:Digits",
    "fashion-mnist": "peer.tasks.fashion_mnist:FashionMnist",
    "image-folder": "peer.tasks.image_folder:ImageFolderTask",
    "quadratics": "peer.tasks.quadratics:Quadratics",
    "text-classification": "peer.tasks.text_classification:TextClassification",
}


def load_task(config: TaskConfig) -> Task:
    """The task that the config names, with its options.

    Raises ConfigError for an unknown name, a task that cannot be imported or is not complete, and
    wrong options.
    """
    if config.name == OWN_LOOP:
        raise ConfigError(
            "task.name",
            OWN_LOOP,
            "its peers are programs with a training loop of their own",
            "start the coordinator alone and those programs, which join by relayswarm.Swarm "
            "(docs/own-loop.md)",
        )
    kind = task_class(Path(config.file), config.name) if config.file else _find(config.name)
    if not (isinstance(kind, type) and issubclass(kind, Task)):
        raise ConfigError(
            "task.name", config.name, f"names {kind!r}, not a task", "derive from relayswarm.Task"
        )
    require_complete(kind)
    return kind(config.options)


def _find(name: str) -> object:
    if name in BUILT_IN:
        module, _, attribute = BUILT_IN[name].partition(":")
        return getattr(import_module(module), attribute)
    return OFFERS.load(name, BUILT_IN)
