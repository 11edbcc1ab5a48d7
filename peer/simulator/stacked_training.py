"""Local steps of many peers at once: one call of `torch.func` over models stacked as [n, d].

Every peer has the data order, rate and optimizer state it would have alone; results agree with
`Trainer` up to the order in which floating-point sums are formed. What cannot be stacked (random
losses, models with buffers, batches of unequal size) is told by `Unstackable` or found by
`choose`, which then trains one peer after another; so it does where stacking would be slower.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from peer.simulator.stacked_data import StackedData, Unstackable, first_of
from peer.simulator.stacked_optimizer import StackedOptimizer
from peer.tasks.registry import load_task
from peer.training.random_state import RandomState, derive_seed
from peer.training.trainer import QUASI_GLOBAL_MOMENTUM, Trainer
from relayswarm.config import RunConfig
from relayswarm.task import Measured, Site, Task, TaskData

Stacking: TypeAlias = Literal["auto", "on", "off"]

MEASUREMENTS = 3
_UNVMAPPABLE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What a loss that works on one model may raise on a stack of them."""


class LocalSteps(Protocol):
    """The training of all peers of a swarm; peers are their numbers."""

    def train(
        self,
        peers: Sequence[int],
        step: int,
        lr_scale: float,
        models: Tensor,
        momenta: Tensor | None = None,
        local_steps: range | None = None,
        at: int | None = None,
    ) -> list[float]:
        """Take the local steps of `step`, in place; returns the losses (nan if not finite).

        `models` and `momenta` (quasi-global) have shape (len(peers), d). `peers` is ascending.
        `local_steps` and `at` are as in `Trainer.train`.
        """

    def evaluate(self, peer: int, model: Tensor) -> dict[str, Measured]:
        """Measure a model, shape (d,), at that peer's site."""

    def state_dict(self, peer: int, model: Tensor) -> dict[str, Tensor]:
        """A model, shape (d,), by the names of its own `state_dict`."""

    def data(self, peer: int) -> TaskData:
        """That peer's shard."""


class OneByOne:
    """Peers train one after another, each with a `Trainer` of its own."""

    def __init__(self, trainers: Sequence[Trainer]) -> None:
        self._trainers = trainers

    def train(
        self,
        peers: Sequence[int],
        step: int,
        lr_scale: float,
        models: Tensor,
        momenta: Tensor | None = None,
        local_steps: range | None = None,
        at: int | None = None,
    ) -> list[float]:
        losses = []
        for k, (peer, model) in enumerate(zip(peers, models.unbind(), strict=True)):
            trainer = self._holding(peer, model)
            momentum = None if momenta is None else momenta[k]
            losses.append(trainer.train(step, lr_scale, momentum, local_steps, at).loss)
            model.copy_(trainer.flat.vector)
        return losses

    def evaluate(self, peer: int, model: Tensor) -> dict[str, Measured]:
        return self._trainers[peer].evaluate(model)

    def state_dict(self, peer: int, model: Tensor) -> dict[str, Tensor]:
        return self._holding(peer, model).flat.state_dict()

    def data(self, peer: int) -> TaskData:
        return self._trainers[peer].data

    def _holding(self, peer: int, model: Tensor) -> Trainer:
        trainer = self._trainers[peer]
        trainer.flat.vector.copy_(model)
        return trainer


class Stacked:
    """All peers train in one call. Raises Unstackable where that is known not to work."""

    def __init__(self, template: Trainer, sites: Sequence[Site]) -> None:
        flat, config = template.flat, template.config
        if flat.parameters_end != flat.vector.numel() or flat.local_tensors():
            raise Unstackable("the model has buffers, or parts that are not shared")
        self._template = template
        self._sites = sites
        self._shards = [template.data, *(_shard(template, site) for site in sites[1:])]
        self._data = StackedData(self._shards, sites, config, template.device)
        self._optimizer = StackedOptimizer(template.settings, len(sites), flat.vector)
        self._sizes = [spec.size for spec in flat.layout]
        self._shapes = [(f"model.{spec.name}", spec.shape) for spec in flat.layout]
        self._loss = _Loss(template.task, flat.module)
        with torch.no_grad():
            sample = self._data.batch(range(1), torch.tensor([0]), 0)
            known = template.task.gradients(flat.module, first_of(sample))
        # torch's own state is nobody's here, so a loss that draws from it is refused
        self._losses = vmap(self._loss_of, randomness="error")
        self._known = None if known is None else vmap(self._known_gradients)

    def train(
        self,
        peers: Sequence[int],
        step: int,
        lr_scale: float,
        models: Tensor,
        momenta: Tensor | None = None,
        local_steps: range | None = None,
        at: int | None = None,
    ) -> list[float]:
        config = self._template.config
        count = config.algorithm.local_steps
        lr = self._template.lr(step if at is None else at) * lr_scale
        chosen = None if len(peers) == len(self._sites) else torch.tensor(peers)
        total = torch.zeros(len(peers), dtype=torch.float64, device=models.device)
        draws = local_steps or range(step * count, (step + 1) * count)
        optimizer, is_adam = self._optimizer, self._template.settings.name == "adam"
        if momenta is not None and is_adam:
            optimizer.gather_movements(momenta, chosen)
        for draw in draws:
            batch = self._data.batch(peers, chosen, draw)
            gradients, losses = self._gradients(models, batch)
            if momenta is None:
                optimizer.step(models, gradients, lr, chosen)
            elif is_adam:
                optimizer.quasi_global_adam_step(models, gradients, lr, chosen)
            else:
                beta = config.algorithm.momentum
                beta = QUASI_GLOBAL_MOMENTUM if beta is None else beta
                optimizer.quasi_global_step(models, gradients, lr, momenta, beta)
            total += losses
        mean = total / len(draws)
        losses_of: list[float] = mean.masked_fill(~mean.isfinite(), math.nan).tolist()
        return losses_of

    def evaluate(self, peer: int, model: Tensor) -> dict[str, Measured]:
        return self._template.evaluate(model, self._sites[peer])

    def state_dict(self, peer: int, model: Tensor) -> dict[str, Tensor]:  # noqa: ARG002
        flat = self._template.flat
        flat.vector.copy_(model)
        return {name: tensor.clone() for name, tensor in flat.state_dict().items()}

    def data(self, peer: int) -> TaskData:
        return self._shards[peer]

    def start_over(self) -> None:
        """Forget what the optimizer has gathered."""
        self._optimizer.start_over()

    def _gradients(self, models: Tensor, batch: Any) -> tuple[Tensor, Tensor]:
        """Gradients (k, d) and losses (k,) of models (k, d). A model has a part in no loss but its
        own, so the gradient of their sum is the gradients of all."""
        if self._known is not None:
            with torch.no_grad():
                gradients, losses = self._known(models, batch)
            return gradients, losses
        leaf = models.detach().requires_grad_()
        with sdpa_kernel(SDPBackend.MATH):  # of attention's kinds, the one that vmap can batch
            losses = self._losses(leaf, batch)
        (gradients,) = torch.autograd.grad(losses.sum(), leaf)
        return gradients, losses.detach()

    def _loss_of(self, model: Tensor, batch: Any) -> Tensor:
        loss: Tensor = functional_call(self._loss, self._parameters(model), (batch,))
        return loss

    def _known_gradients(self, model: Tensor, batch: Any) -> tuple[Tensor, Tensor]:
        loss, gradients = functional_call(self._loss, self._parameters(model), (batch, True))
        return torch.cat([gradient.reshape(-1) for gradient in gradients]), loss

    def _parameters(self, model: Tensor) -> dict[str, Tensor]:
        parts = torch.split(model, self._sizes)
        named = zip(self._shapes, parts, strict=True)
        return {name: part.view(shape) for (name, shape), part in named}


class _Loss(nn.Module):
    """A task's loss as a module, so that its model's parameters can be replaced for a call."""

    def __init__(self, task: Task, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._task = task

    def forward(self, batch: Any, with_known_gradients: bool = False) -> Any:
        """The loss; or loss and gradients, of a task that knows them."""
        if with_known_gradients:
            return self._task.gradients(self.model, batch)
        return self._task.loss(self.model, batch)


def _shard(template: Trainer, site: Site) -> TaskData:
    seed = derive_seed("data", template.config.seed, site.shard)
    with RandomState(seed, template.device):
        return template.task.data(site)


@dataclass(frozen=True, slots=True)
class Choice:
    """How a swarm trains, and why. `first` is a trainer like the first peer's, not used by it,
    `start` the model that all begin with, shape (d,)."""

    steps: LocalSteps
    first: Trainer
    start: Tensor
    is_stacked: bool
    reason: str


def choose(
    config: RunConfig, sites: Sequence[Site], device: str, stacking: Stacking = "auto"
) -> Choice:
    """Stacked training where it works and is faster (`on`: where it works; `off`: never), else one
    by one.

    Both are tried on the first step, on models that are thrown away. With `deterministic = true` it
    is one by one, as that alone gives the bits that peers have by themselves. Raises ConfigError or
    DataError as the peers would.
    """
    trainer = Trainer(load_task(config.task), config, sites[0], device)
    start = trainer.flat.vector.clone()
    stacked, reason = None, "deterministic = true" if config.deterministic else "not asked for"
    if not config.deterministic and stacking != "off":
        stacked, reason = _try(trainer, sites, start)
    if stacked and stacking == "auto":
        ratio = _speed_up(trainer, stacked, len(sites), start)
        reason = f"{ratio:.1f} times as fast as one by one"
        stacked = stacked if ratio > 1 else None
    if stacked:
        stacked.start_over()
        return Choice(stacked, trainer, start, True, reason)
    trainers = [Trainer(load_task(config.task), config, site, device) for site in sites]
    return Choice(OneByOne(trainers), trainer, start, False, reason)


def _try(trainer: Trainer, sites: Sequence[Site], start: Tensor) -> tuple[Stacked | None, str]:
    """Stacked training, if its first step is that of a single peer; else why not."""
    expected = trainer.train(0).loss  # what is wrong with the task itself shows here
    if trainer.settings.autocast:
        return None, "cannot be stacked: optimizer.autocast"
    try:
        stacked = Stacked(trainer, sites)
        models = start.repeat(len(sites), 1)
        losses = stacked.train(range(len(sites)), 0, 1.0, models)
    except _UNVMAPPABLE as error:
        return None, f"cannot be stacked: {error}"
    moved = trainer.flat.vector - start
    error_norm = float((models[0] - trainer.flat.vector).norm())
    rounding = 10 * torch.finfo(start.dtype).eps * float(start.norm())
    agrees = error_norm <= 0.01 * float(moved.norm()) + rounding
    if not agrees or not math.isclose(losses[0], expected, rel_tol=0.01, abs_tol=1e-6):
        return None, "a stacked step is not what a peer does alone"
    return stacked, "asked for"


def _speed_up(trainer: Trainer, stacked: Stacked, peers: int, start: Tensor) -> float:
    """Time of a step of all peers one after another, over that of a stacked one."""
    models = start.repeat(peers, 1)
    alone, together = [], []
    for _ in range(MEASUREMENTS):
        began = time.perf_counter()
        trainer.train(0)
        alone.append(time.perf_counter() - began)
        began = time.perf_counter()
        stacked.train(range(peers), 0, 1.0, models)
        together.append(time.perf_counter() - began)
    return peers * statistics.median(alone) / statistics.median(together)
