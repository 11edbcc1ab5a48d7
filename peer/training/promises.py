"""What a task gives, held against what `relayswarm.task` says it gives.

Each function raises ConfigError that names the method of the task, what it gave, and the remedy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

from torch import Tensor, nn

from relayswarm.errors import ConfigError
from relayswarm.task import Measured, Site, TaskData

_MEMBERS = ("__len__", "batch", "digest", "notes")  # of TaskData
_SHORT = 60  # characters of a value in an error


def require_module(model: object) -> nn.Module:
    """Of `model`."""
    if isinstance(model, nn.Module):
        return model
    raise _wrong("task.model", model, "not a torch.nn.Module", "return one")


def require_samples(data: object, site: Site) -> TaskData:
    """Of `data`, for this site."""
    lacking = [name for name in _MEMBERS if not hasattr(data, name)]
    if lacking:
        problem = f"no data of a shard (it lacks {', '.join(lacking)})"
        raise _wrong("task.data", data, problem, "return a relayswarm.TensorData, or one like it")
    samples = cast("TaskData", data)
    if len(samples) == 0:
        problem = f"shard {site.shard} of {site.shards} has no samples"
        raise ConfigError("task.data", 0, problem, "give every shard one, or use fewer data.shards")
    return samples


def require_scalar(loss: object) -> None:
    """Of `loss`."""
    if not isinstance(loss, Tensor):
        raise _wrong("task.loss", loss, "not a tensor", "return the mean loss, with its gradient")
    if loss.dim() != 0:
        shape, problem = f"shape {tuple(loss.shape)}", "not a scalar with a gradient"
        raise ConfigError("task.loss", shape, problem, "return its mean over the batch")
    if not loss.requires_grad:
        remedy = "compute it from the model's output, without item(), detach() or no_grad()"
        raise ConfigError("task.loss", float(loss), "not a scalar with a gradient", remedy)


def require_measured(found: object, field: str = "task.evaluate") -> dict[str, Measured]:
    """Of `evaluate`, which an error calls `field`."""
    remedy = 'return a dict such as {"accuracy": relayswarm.Measured(0.9, weight=100)}'
    if not isinstance(found, Mapping):
        raise _wrong(field, found, "no dict of measurements by name", remedy)
    for name, value in found.items():
        if not isinstance(name, str):
            raise ConfigError(field, name, "a name that is no text", remedy)
        if not isinstance(value, Measured):
            raise _wrong(f"{field}.{name}", value, "not a relayswarm.Measured", remedy)
        try:
            float(value.value), float(value.weight)
        except (TypeError, ValueError) as error:
            problem = f"not a number and a weight ({error})"
            raise _wrong(f"{field}.{name}", value, problem, remedy) from error
    return dict(found)


def _wrong(field: str, value: object, problem: str, remedy: str) -> ConfigError:
    shown = repr(value)
    shown = shown if len(shown) <= _SHORT else f"{shown[:_SHORT]}..."
    return ConfigError(field, type(value).__name__, f"{problem}: {shown}", remedy)
