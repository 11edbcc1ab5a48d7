"""torch's optimizers from the run config and the task's defaults.

`foreach` and `fused` are off: their kernels group tensors as it suits the device, and then a
result would depend on more than its inputs.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from peer.training.schedule import DECAY_AT, DECAY_FACTOR, Schedule, learning_rate
from relayswarm.config import OptimizerConfig, RunConfig
from relayswarm.errors import ConfigError
from relayswarm.task import validate_options

_ANY_OPTIMIZER = (
    "schedule",
    "warmup_steps",
    "warmup",
    "warmup_from",
    "decay_at",
    "decay_factor",
    "autocast",
)  # defaults that outlive a change of optimizer
_STANDARD_RATE = {"sgd": 0.1, "adam": 1e-3, "adamw": 1e-3}
_STANDARD_DECAY = {"sgd": 0.0, "adam": 0.0, "adamw": 0.01}
EPSILON = 1e-8
"""Adam's in torch; and beside the norm of a movement, as in the code of Lin et al."""


@dataclass(frozen=True, slots=True)
class OptimizerSettings:
    """An optimizer with nothing left open. `lr` is the schedule's base rate. The warm-up has
    `warmup_steps`, or where that is 0 is the part `warmup` of the run."""

    name: Literal["sgd", "adam", "adamw"]
    lr: float
    momentum: float
    nesterov: bool
    weight_decay: float
    betas: tuple[float, float]
    schedule: Schedule
    warmup_steps: int
    decay_at: tuple[float, ...] = DECAY_AT
    decay_factor: float = DECAY_FACTOR
    warmup: float = 0.0
    warmup_from: float = 0.0
    autocast: Literal["bfloat16", "float16"] | None = None

    def warms_up_for(self, total_steps: int) -> int:
        """Steps of the warm-up of a run of so many."""
        return self.warmup_steps or round(self.warmup * total_steps)

    @property
    def is_constant(self) -> bool:
        """Whether the rate stays as it is."""
        return self.schedule == "constant" and not (self.warmup_steps or self.warmup)

    def describe(self, total_steps: int | None) -> str:
        """In words; None: of a run of any length."""
        parts = [self.name, f"lr {self.lr:g}"]
        if self.momentum:
            nesterov = " (Nesterov)" if self.nesterov else ""
            parts.append(f"momentum {self.momentum:g}{nesterov}")
        if self.weight_decay:
            parts.append(f"weight decay {self.weight_decay:g}")
        parts.append(self.schedule)
        if self.schedule == "step":
            places = " and ".join(f"{part:.3g}" for part in self.decay_at)
            parts[-1] += f" (times {self.decay_factor:g} at {places} of the run)"
        if warm_up := self._warm_up(total_steps):
            since = f" from {self.warmup_from:g} of it" if self.warmup_from else ""
            parts.append(f"warm-up of {warm_up}{since}")
        if self.autocast:
            parts.append(f"computed in {self.autocast}")
        return ", ".join(parts)

    def _warm_up(self, total_steps: int | None) -> str:
        if total_steps is None and not self.warmup_steps:
            return f"{self.warmup:.3g} of the run" if self.warmup else ""
        steps = self.warms_up_for(total_steps or 0)
        return f"{steps} step{'s' * (steps != 1)}" if steps else ""

    def rate(self, step: int, total_steps: int) -> float:
        """That of `step` in a run of so many."""
        return learning_rate(
            self.lr,
            self.schedule,
            step,
            total_steps,
            self.warms_up_for(total_steps),
            self.decay_at,
            self.decay_factor,
            self.warmup_from,
        )


def resolve(config: OptimizerConfig, defaults: Mapping[str, Any]) -> OptimizerSettings:
    """The config's settings over the task's defaults over the usual ones.

    The task's defaults are meant for the optimizer they name; if the config chooses another,
    only its schedule and warm-up are kept. Raises ConfigError for what does not fit together.
    """
    task: OptimizerConfig = validate_options(OptimizerConfig, defaults, "task.optimizer_defaults")
    chosen = config.name or task.name or "sgd"
    merged = {
        key: value
        for key, value in task.model_dump().items()
        if value is not None and (chosen == (task.name or "sgd") or key in _ANY_OPTIMIZER)
    }
    explicit = {key: value for key, value in config.model_dump().items() if value is not None}
    for key, other in (("warmup", "warmup_steps"), ("warmup_steps", "warmup")):
        if key in explicit:  # the two say the same
            merged.pop(other, None)
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
        decay_at=tuple(merged.get("decay_at", DECAY_AT)),
        decay_factor=merged.get("decay_factor", DECAY_FACTOR),
        warmup=merged.get("warmup", 0.0),
        warmup_from=merged.get("warmup_from", 0.0),
        autocast=merged.get("autocast"),
    )
    _check(settings, explicit)
    return settings


def of_run(config: RunConfig, defaults: Mapping[str, Any]) -> OptimizerSettings:
    """The optimizer of a run. The `algorithm.momentum` of d2 (RelaySGD paper, Algorithm 2, lines 3
    and 4) is Nesterov momentum of its local steps. Raises ConfigError as `resolve` does, and where
    a method's form goes by an optimizer that only the task names."""
    method, optimizer = config.algorithm, config.optimizer
    if method.name == "d2" and method.momentum is not None:
        settings = {"momentum": method.momentum, "nesterov": method.momentum > 0}
        optimizer = optimizer.model_copy(update=settings)
    resolved = resolve(optimizer, defaults)
    if method.name == "dpsgd-qgm" and optimizer.name is None and resolved.name != "sgd":
        problem = "is the task's own, and dpsgd-qgm is another method with each optimizer"
        remedy = 'set optimizer.name = "adam" or "sgd"'
        raise ConfigError("optimizer.name", resolved.name, problem, remedy)
    return resolved


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


def gather_movement(
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[Tensor],
    movements: Sequence[Tensor],
    betas: tuple[float, float],
) -> None:
    """Take the last movement of the averaged model into the moments of quasi-global Adam:

        d <- d / (|d| + 1e-8)
        m <- b1 m + (1 - b1) d
        v <- b2 v + (1 - b2) d^2        element by element
        t <- t + 1

    d, one tensor for each parameter, is the movement over the rate; |d| is its Euclidean norm over
    the whole model. m, v and t are kept where torch's Adam keeps its own, zero at first.
    """
    with torch.no_grad():
        norms = torch.stack([torch.linalg.vector_norm(d) for d in movements])
        norm = torch.linalg.vector_norm(norms) + EPSILON
        for parameter, movement in zip(parameters, movements, strict=True):
            d, state = movement / norm, optimizer.state[parameter]
            if not state:
                state["step"] = torch.zeros(())
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
            state["step"] += 1
            state["exp_avg"].mul_(betas[0]).add_(d, alpha=1 - betas[0])
            state["exp_avg_sq"].mul_(betas[1]).addcmul_(d, d, value=1 - betas[1])


def quasi_global_adam_step(
    optimizer: torch.optim.Optimizer,
    parameters: Sequence[Tensor],
    lr: float,
    betas: tuple[float, float],
    weight_decay: float,
) -> None:
    """Add u = -lr m' / (sqrt(v') + 1e-8) to each parameter, where

        m' = (b1 m + (1 - b1) g)   / (1 - b1^t)
        v' = (b2 v + (1 - b2) g^2) / (1 - b2^t)

    m, v and t are those of `gather_movement`, and only read. A parameter without gradient counts
    as one with g = 0.
    """
    with torch.no_grad():
        for parameter in parameters:
            state, gradient = optimizer.state[parameter], parameter.grad
            steps = float(state["step"])
            first, second = state["exp_avg"] * betas[0], state["exp_avg_sq"] * betas[1]
            if gradient is not None:
                if weight_decay:
                    gradient = gradient.add(parameter, alpha=weight_decay)
                first.add_(gradient, alpha=1 - betas[0])
                second.addcmul_(gradient, gradient, value=1 - betas[1])
            scale = second.sqrt_().div_(math.sqrt(1 - betas[1] ** steps)).add_(EPSILON)
            parameter.addcdiv_(first, scale, value=-lr / (1 - betas[0] ** steps))


def _check(settings: OptimizerSettings, explicit: Mapping[str, Any]) -> None:
    if settings.nesterov and not settings.momentum > 0:
        raise ConfigError(
            "optimizer.nesterov", True, "needs momentum", "set optimizer.momentum, e.g. 0.9"
        )
    if not all(0 <= beta < 1 for beta in settings.betas):
        raise ConfigError(
            "optimizer.betas", settings.betas, "not in [0, 1)", "the usual ones are [0.9, 0.999]"
        )
    for key in ("decay_at", "decay_factor"):
        if key in explicit and settings.schedule != "step":
            raise ConfigError(
                f"optimizer.{key}",
                explicit[key],
                f'the schedule is "{settings.schedule}"',
                'set optimizer.schedule = "step", or remove it',
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
