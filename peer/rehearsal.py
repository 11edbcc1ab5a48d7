"""A run tried out for seconds before it is run: one peer's part, without any other peer.

What belongs here: finding what is wrong with a task, at its line, and measuring what a step takes.
"""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from peer.algorithms.metric_relay import MAX_METRICS, MAX_NAME
from peer.baseline import plain
from peer.codec.formats import default_format
from peer.outcome import BEFORE, Metrics
from peer.tasks.files import Home, home_of, located
from peer.tasks.registry import load_task
from peer.training.optimizer import OptimizerSettings
from peer.training.trainer import Trainer, make_site, to_device
from peer.wire_format import lattice_setting, plain_format, quantizer_setting
from relayswarm.config import RunConfig
from relayswarm.errors import TaskError
from relayswarm.task import Task

STEPS, STEPS_S = 20, 2.0
"""So many steps are timed, or as many as begin in so many seconds."""

SHARDS_S = 5.0
"""Shards are looked at in order for so many seconds."""

REPEAT_S = 3.0
"""What takes longer is not called again to see whether it gives the same."""

CLOSE = {torch.float64: 1e-6, torch.float32: 1e-3}
"""Relative difference between a gradient in closed form and autograd's that is rounding."""

ARGUMENTS = {"optimizer_defaults": 0, "model": 0, "data": 1, "loss": 2, "evaluate": 2}
"""How many arguments each method of a task is called with."""


@dataclass(frozen=True)
class Rehearsal:
    """What a peer of the run is like.

    `parameters` are those that are trained, of which `shared_parameters` are averaged. `elements`
    are those of the vector that travels (shared parameters and float buffers), `model_bytes`
    what it takes in memory, `message_bytes` in a message. `samples` are those of the shards that
    were looked at. `loss` is that of the first step, `metrics` are what `steps` steps of this peer
    alone lead to. Seconds are of one thread on the CPU, or of the GPU.
    """

    place: str
    parameters: int
    shared_parameters: int
    frozen_parameters: int
    elements: int
    dtype: str
    model_bytes: int
    message_bytes: int
    samples: tuple[int, ...]
    loss: float
    steps: int
    metrics: Metrics
    seconds_per_step: float
    seconds_per_evaluation: float
    optimizer: OptimizerSettings
    warnings: tuple[str, ...]


def rehearse(config: RunConfig, data_dir: Path | None, device: str) -> Rehearsal:
    """Try out the task of a run as its first peer would use it.

    Raises TaskError at the line that is wrong, ConfigError or DataError for what is not the task's
    fault.
    """
    task = load_task(config.task)
    home = home_of(type(task))
    _check_arguments(task, home)
    with _one_thread():
        with located(home), home.watching():
            trainer = Trainer(task, config, make_site(config, 0, data_dir), device)
            samples = _samples_of_shards(trainer)
            _check_repeats(trainer, home)
        loss = first_step(trainer, home)
        with located(home):
            steps, seconds, warnings = _timed_steps(trainer, loss)
        evaluation_s, metrics = _evaluation(trainer, home)
    flat = trainer.flat
    return Rehearsal(
        place=home.place(),
        parameters=sum(parameter.numel() for parameter in flat.parameters),
        shared_parameters=flat.parameters_end,
        frozen_parameters=sum(p.numel() for p in flat.module.parameters() if not p.requires_grad),
        elements=flat.vector.numel(),
        dtype=str(flat.vector.dtype).removeprefix("torch."),
        model_bytes=flat.vector.numel() * flat.vector.itemsize,
        message_bytes=_message_bytes(config, flat.vector),
        samples=samples,
        loss=loss,
        steps=steps,
        metrics=metrics,
        seconds_per_step=seconds,
        seconds_per_evaluation=evaluation_s,
        optimizer=trainer.settings,
        warnings=(*_unused(trainer), *warnings, *_too_many(trainer.config, metrics)),
    )


def try_once(trainer: Trainer) -> None:
    """Take one step and evaluate. Raises TaskError at the line that is wrong."""
    home = home_of(type(trainer.task))
    _check_arguments(trainer.task, home)
    first_step(trainer, home)
    _evaluation(trainer, home)


def first_step(trainer: Trainer, home: Home) -> float:
    """Take the first step of the run; returns its loss. Raises TaskError."""
    shapes = _described(trainer.data.batch(_first_indices(trainer)))
    with located(home, f"mend that line; the batch is {shapes}"), home.watching():
        _check_gradients(trainer, home)
        loss = trainer.train(0).loss
    if not math.isfinite(loss):
        problem, remedy = "not finite in the first step", "check for log(0), division by 0 and nan"
        raise TaskError(home.place("loss"), "task.loss", loss, problem, remedy)
    return loss


@contextmanager
def _one_thread() -> Iterator[None]:
    """As peers that share a machine have it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _check_arguments(task: Task, home: Home) -> None:
    for name, count in ARGUMENTS.items():
        method = getattr(task, name)
        signature = inspect.signature(method)
        try:
            signature.bind(*[None] * count)
        except TypeError as error:
            remedy = (
                f"write def {name}({', '.join(inspect.signature(getattr(Task, name)).parameters)})"
            )
            given = f"({', '.join(map(str, signature.parameters))})"
            raise TaskError(home.place(name), f"task.{name}", given, str(error), remedy) from error


def _samples_of_shards(trainer: Trainer) -> tuple[int, ...]:
    """Samples of each shard, as far as there is time to cut it."""
    config, site = trainer.config, trainer.site
    samples = [trainer.samples]
    if site.is_local:
        return (trainer.samples,)
    began = time.monotonic()
    for shard in range(1, config.shards):
        if time.monotonic() - began > SHARDS_S:
            break
        samples.append(len(trainer.data_of(replace(site, shard=shard))))
    return tuple(samples)


def _check_repeats(trainer: Trainer, home: Home) -> None:
    """All peers start from one model, and cut the data alike."""
    began = time.monotonic()
    digest = trainer.data_of(trainer.site).digest()
    if digest != trainer.data.digest():
        problem = "called again for the same shard it gave other samples"
        remedy = "draw from a generator that is seeded with site.seed"
        raise TaskError(home.place("data"), "task.data", digest[:12], problem, remedy)
    if time.monotonic() - began > REPEAT_S:
        return
    again = Trainer(trainer.task, trainer.config, trainer.site, trainer.device)
    differs = again.flat.fingerprint != trainer.flat.fingerprint  # such as by what is frozen
    if differs or not torch.equal(again.flat.vector, trainer.flat.vector):
        problem = "called again from the same seed it gave another model"
        remedy = "draw from torch's global generator, without a seed or time of your own"
        raise TaskError(home.place("model"), "task.model", "random", problem, remedy)


def _check_gradients(trainer: Trainer, home: Home) -> None:
    """Where they are known in closed form, autograd must find the same."""
    task, module, parameters = trainer.task, trainer.flat.module, trainer.flat.parameters
    if type(task).gradients is Task.gradients:
        return
    batch = to_device(trainer.data.batch(_first_indices(trainer)), trainer.device)
    with torch.no_grad():
        known = task.gradients(module, batch)
    if known is None:
        return
    found = torch.autograd.grad(task.loss(module, batch), parameters, allow_unused=True)
    for index, (own, other) in enumerate(zip(known[1], found, strict=True)):
        wanted = torch.zeros_like(own) if other is None else other
        error = float((own - wanted).norm() / wanted.norm().clamp(min=1e-12))
        if error > CLOSE.get(own.dtype, 1e-1):
            problem = f"parameter {index} differs from autograd's by {error:.1e}, relatively"
            remedy = "correct it, or leave gradients() out"
            raise TaskError(home.place("gradients"), "task.gradients", index, problem, remedy)


def _timed_steps(trainer: Trainer, loss: float) -> tuple[int, float, list[str]]:
    """How many steps were taken, with the first; seconds of a later one, the median; remarks."""
    seconds, last, step = [], loss, 1
    began = time.monotonic()
    while step == 1 or (step <= STEPS and time.monotonic() - began < STEPS_S):
        result = trainer.train(min(step, trainer.config.steps - 1))
        trainer.settle()
        seconds.append(result.seconds)
        last = result.loss
        step += 1
    if math.isfinite(last):
        return step, median(seconds), []
    lr = trainer.settings.lr
    warning = f"the loss was not finite any more after {step} steps: lower optimizer.lr = {lr:g}"
    return step, median(seconds), [warning]


def _evaluation(trainer: Trainer, home: Home) -> tuple[float, Metrics]:
    began = time.perf_counter()
    with located(home), home.watching():
        measured = trainer.evaluate()
    seconds = time.perf_counter() - began
    remedy = 'return a dict such as {"accuracy": relayswarm.Measured(0.9, weight=100)}'
    if not measured:
        problem = "nothing is measured"
        raise TaskError(home.place("evaluate"), "task.evaluate", {}, problem, remedy)
    for name, one in measured.items():
        if not (math.isfinite(float(one.weight)) and float(one.weight) >= 0):
            problem, remedy = "no weight", "give the number of samples that it is a mean of"
            field = f"task.evaluate.{name}.weight"
            raise TaskError(home.place("evaluate"), field, float(one.weight), problem, remedy)
    return seconds, plain(measured)


def _unused(trainer: Trainer) -> Iterator[str]:
    named = trainer.flat.module.named_parameters()
    unused = [name for name, one in named if one.requires_grad and one.grad is None]
    if unused:
        yield f"the loss depends on these parameters in no way: {', '.join(unused)}"


def _too_many(config: RunConfig, metrics: Iterable[str]) -> Iterator[str]:
    names = list(metrics)
    if config.evaluation.before_averaging:
        names += [BEFORE + name for name in names]
    if len(names) > MAX_METRICS:
        yield f"of {len(names)} metrics the swarm's mean is known of the first {MAX_METRICS}"
    for name in names:
        if len(name) > MAX_NAME:
            yield f"the name of {name[:MAX_NAME]}... is too long for the swarm to know its mean"


def _message_bytes(config: RunConfig, vector: Tensor) -> int:
    """Of a model in a message, without its header."""
    lattice = lattice_setting(config) or quantizer_setting(config)
    if lattice:
        return vector.numel() * lattice.bits // 8
    return vector.numel() * (plain_format(config) or default_format(vector.dtype)).itemsize


def _first_indices(trainer: Trainer) -> Tensor:
    return torch.arange(min(trainer.config.data.batch_size, trainer.samples))


def _described(batch: Any) -> str:
    """Types and shapes of what is in a batch."""
    if isinstance(batch, Tensor):
        return f"{str(batch.dtype).removeprefix('torch.')} {tuple(batch.shape)}"
    if isinstance(batch, dict):
        inner = ", ".join(f"{key}: {_described(value)}" for key, value in batch.items())
        return f"{{{inner}}}"
    if isinstance(batch, tuple | list):
        return f"({', '.join(map(_described, batch))})"
    return type(batch).__name__
