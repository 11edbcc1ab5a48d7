"""torch's optimizers from the run config and the task's defaults.

`foreach` and `fused` are off: their kernels group tensors as it suits the device, and then a
result would depend on more than its inputs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from peer.training.schedule import Schedule
from relayswarm.config import OptimizerConfig, RunConfig
from relayswarm.errors import ConfigError
from relayswarm.task import validate_options

_ANY_OPTIMIZER = ("schedule", "warmup_steps")  # defaults that outlive a change of optimizer
_STANDARD_RATE = {"sgd": 0.1, "adam": 1e-3, "adamw": 1e-3}
_STANDARD_DECAY = {"sgd": 0.0, "adam": 0.0, "adamw": 0.01}


@dataclass(frozen=True, slots=True)
class OptimizerSettings:
    """An optimizer with nothing left open. `lr` is the schedule's base rate."""

    name: Literal["sgd", "adam", "adamw"]
    lr: float
    momentum: float
    nesterov: bool
    weight_decay: float
    betas: tuple[float, float]
    schedule: Schedule
    warmup_steps: int


def resolve(config: OptimizerConfig, defaults: Mapping[str, Any]) -> OptimizerSettings:
    """The config's settings over the task's defaults over the usual ones.

    The task's defaults are meant for the optimizer they name; if the config chooses another,
    only its schedule and warm-up are kept. Raises ConfigError for what does not fit together.
    """
    task: OptimizerConfig = validate_options(OptimizerConfig, defaults, "task optimizer default")
    chosen = config.name or task.name or "sgd"
    merged = {
        key: value
        for key, value in task.model_dump().items()
        if value is not None and (chosen == (task.name or "sgd") or key in _ANY_OPTIMIZER)
    }
    explicit = {key: value for key, value in config.model_dump().items() if value is not None}
    merged |= explicit
    momentum = merged.get("momentum", 0.0)
    if momentum == 0 and "nesterov" not in explicit:
        merged["nesterov"] = False
    settings = OptimizerSettings(
        name=chosen,
        lr=merged.get("lr", _STANDARD_RATE[chosen]),
        momentum=momentum,
        nesterov=merged.get("nesterov", False),
        weight_decay=merged.get("weight_decay", _STANDARD_DECAY[chosen]),
        betas=tuple(merged.get("betas", (0.9, 0.999))),
        schedule=merged.get("schedule", "constant"),
        warmup_steps=merged.get("warmup_steps", 0),
    )
    _check(settings, explicit)
    return settings


def of_run(config: RunConfig, defaults: Mapping[str, Any]) -> OptimizerSettings:
    """The optimizer of a run. The `algorithm.momentum` of d2 (RelaySGD paper, Algorithm 2, lines 3
    and 4) is Nesterov momentum of its local steps. Raises ConfigError as `resolve` does."""
    method, optimizer = config.algorithm, config.optimizer
    if method.name == "d2" and method.momentum is not None:
        settings = {"momentum": method.momentum, "nesterov": method.momentum > 0}
        optimizer = optimizer.model_copy(update=settings)
    return resolve(optimizer, defaults)


def build(settings: OptimizerSettings, parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
    """The optimizer over `parameters`; its rate is set anew before every step."""
    decay = settings.weight_decay
    if settings.name == "sgd":
        return torch.optim.SGD(
            parameters,
            lr=settings.lr,
            momentum=settings.momentum,
            nesterov=settings.nesterov,
            weight_decay=decay,
            foreach=False,
            fused=False,
        )
    kind = torch.optim.Adam if settings.name == "adam" else torch.optim.AdamW
    return kind(
        parameters,
        lr=settings.lr,
        betas=settings.betas,
        weight_decay=decay,
        foreach=False,
        fused=False,
    )


def bare_step(optimizer: torch.optim.Optimizer) -> Callable[[], object]:
    """The optimizer's step without the profiling and hooks that torch wraps it in: with a small
    model they take longer than the step. To be called without recording gradients."""
    return partial(inspect.unwrap(type(optimizer).step), optimizer)


def quasi_global_step(
    parameters: Sequence[Tensor],
    momenta: Sequence[Tensor],
    lr: float,
    momentum: float,
    weight_decay: float,
) -> None:
    """Add u = -lr (g + b (b m + g)) to each parameter; m is read only, b is `momentum`.

    Quasi-global momentum in Nesterov form (Lin et al. 2021): m is kept by the algorithm from
    differences of averaged models. A parameter without gradient counts as one with g = 0.
    """
    with torch.no_grad():
        for parameter, m in zip(parameters, momenta, strict=True):
            update = m * momentum
            if parameter.grad is not None:
                gradient = parameter.grad
                if weight_decay:
                    gradient = gradient.add(parameter, alpha=weight_decay)
                update.add_(gradient).mul_(momentum).add_(gradient)
            else:
                update.mul_(momentum)
            parameter.add_(update, alpha=-lr)


def _check(settings: OptimizerSettings, explicit: Mapping[str, Any]) -> None:
    if settings.nesterov and not settings.momentum > 0:
        raise ConfigError(
            "optimizer.nesterov", True, "needs momentum", "set optimizer.momentum, e.g. 0.9"
        )
    if not all(0 <= beta < 1 for beta in settings.betas):
        raise ConfigError(
            "optimizer.betas", settings.betas, "not in [0, 1)", "the usual ones are [0.9, 0.999]"
        )
    foreign = ("betas",) if settings.name == "sgd" else ("momentum", "nesterov")
    for key in foreign:
        if explicit.get(key):
            raise ConfigError(
                f"optimizer.{key}",
                explicit[key],
                f"{settings.name} has none",
                "remove it or choose another optimizer.name",
            )
