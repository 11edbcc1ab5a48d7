"""relayswarm: peers train one PyTorch model together by relaying sums of models along a tree.

This is the public face: what a user imports to write a task of their own or to join from a loop of
their own, and the errors.
Importing it loads neither torch nor numpy; each name is resolved when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from relayswarm.errors import (
    ConfigError,
    DataError,
    ExitCode,
    JoinError,
    QuorumError,
    RelayswarmError,
)
from relayswarm.version import __version__

if TYPE_CHECKING:
    from relayswarm.partitioning import partition
    from relayswarm.swarm import Swarm
    from relayswarm.task import Measured, Options, Site, Task, TaskData, TensorData


__all__ = [
    "ConfigError",
    "DataError",
    "ExitCode",
    "JoinError",
    "Measured",
    "Options",
    "QuorumError",
    "RelayswarmError",
    "Site",
    "Swarm",
    "Task",
    "TaskData",
    "TensorData",
    "__version__",
    "partition",
]

_LAZY = {
    "Measured": "relayswarm.task",
    "Options": "relayswarm.task",
    "Site": "relayswarm.task",
    "Swarm": "relayswarm.swarm",
    "Task": "relayswarm.task",
    "TaskData": "relayswarm.task",
    "TensorData": "relayswarm.task",
    "partition": "relayswarm.partitioning",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
