"""What to hold a swarm against: the same training in one place, and the mean of all its models.

The centralized baseline sees all data in one shard and takes as many steps, with the batch of the
whole swarm (n times a peer's) or with that of a single peer; seed, optimizer and schedule are the
run's. A task of full gradients, which has a function in place of samples in every shard, follows
the mean of the shards' gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from peer.outcome import Metrics
from peer.tasks.files import home_of, located
from peer.tasks.registry import load_task
from peer.training.trainer import Trainer, folder_of, make_site
from relayswarm.config import PrivacyConfig, RunConfig
from relayswarm.logs import finite
from relayswarm.task import Measured, Site, Task, TaskData

Models = Sequence[Mapping[str, Tensor]]

SMALL_MODEL = 50_000
"""Parameters up to which a step is so short that torch's threads wait more than they work."""


@dataclass(frozen=True, slots=True)
class Baseline:
    """How the training in one place went; `losses` are (step, training loss)."""

    batch_size: int
    metrics: Metrics
    losses: Sequence[tuple[int, float | None]]


def first_site(config: RunConfig) -> str:
    """The first of the run's peers that has data."""
    peers = (f"peer-{k}" for k in range(config.peers))
    return next(peer for peer in peers if peer not in config.data.forward)


def swarm_batch(config: RunConfig) -> int:
    """Samples of the batches of all peers with data, together."""
    return config.data.batch_size * (config.peers - len(set(config.data.forward)))


def first_trainer(config: RunConfig, data_dir: Path | None, device: str) -> Trainer:
    """A trainer such as the first peer's: it evaluates as all peers do.

    Raises TaskError at the line of a task that cannot give model and data, else ConfigError or
    DataError for whatever would stop the peers from training.
    """
    task = load_task(config.task)
    with located(home_of(type(task))):
        peer = first_site(config)
        return Trainer(
            task, config, make_site(config, 0, folder_of(config, data_dir, peer), peer), device
        )


def centralized_trainer(first: Trainer, batch_size: int) -> Trainer:
    """A trainer like the first peer's, but for all the data of the run."""
    config = first.config.model_copy(update={"privacy": PrivacyConfig()})  # nothing leaves
    if has_full_gradients(first):
        return Trainer(AllShards(first.task), config, first.site, first.device)
    data = config.data.model_copy(update={"shards": 1, "alpha": None, "batch_size": batch_size})
    alone = config.model_copy(update={"data": data})
    return Trainer(first.task, alone, make_site(alone, 0, first.site.data_dir), first.device)


def has_full_gradients(trainer: Trainer) -> bool:
    """Whether shards have no samples to draw: a batch size then means nothing."""
    return trainer.samples == 1


def train_centralized(
    first: Trainer, batch_size: int, on_step: Callable[[int], None] = lambda _: None
) -> Baseline:
    """Train as the run does, in one place; `on_step` hears how many steps are done.

    Large models take all of torch's threads, small ones a single thread as peers do.
    """
    trainer = centralized_trainer(first, batch_size)
    losses = []
    with fitting_threads(trainer):
        for step in range(first.config.steps):
            losses.append((step, finite(trainer.train(step).loss)))
            on_step(step + 1)
        return Baseline(batch_size, plain(trainer.evaluate()), losses)


@contextmanager
def fitting_threads(trainer: Trainer) -> Iterator[None]:
    """As many of torch's threads as the trainer's model can use."""
    before = torch.get_num_threads()
    if trainer.flat.vector.numel() <= SMALL_MODEL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def evaluate_mean(trainer: Trainer, models: Models) -> Metrics | None:
    """Measure the mean of some models, given by tensor name as peers export them. None where peers
    share a part only: the mean of that part is no model.

    Raises ConfigError if they are of another task than the trainer's.
    """
    if trainer.flat.shared_names is not None:
        return None
    trainer.flat.load(mean_model(models))
    return plain(trainer.evaluate())


def mean_model(models: Models, names: Collection[str] | None = None) -> dict[str, Tensor]:
    """The models' mean by tensor name, in float64 and back; integers are those of the first. Of the
    tensors of these `names` alone, if there are any."""
    chosen = models[0] if names is None else [name for name in models[0] if name in names]
    return {name: _mean([model[name] for model in models]) for name in chosen}


def _mean(tensors: Sequence[Tensor]) -> Tensor:
    first = tensors[0]
    if not first.is_floating_point():
        return first.clone()
    total = torch.zeros_like(first, dtype=torch.float64)
    for tensor in tensors:
        total += tensor
    return (total / len(tensors)).to(first.dtype)


def plain(measured: Mapping[str, Measured]) -> Metrics:
    """The values alone."""
    return {name: finite(float(m.value)) for name, m in measured.items()}


class AllShards(Task):
    """A task whose loss is the mean of the losses in all shards of another, a batch from each."""

    def __init__(self, task: Task) -> None:
        self.task = task

    def optimizer_defaults(self) -> Mapping[str, Any]:
        return self.task.optimizer_defaults()

    def model(self) -> nn.Module:
        return self.task.model()

    def data(self, site: Site) -> TaskData:
        return _Shards([self.task.data(replace(site, shard=k)) for k in range(site.shards)])

    def loss(self, model: nn.Module, batch: list[Any]) -> Tensor:
        return torch.stack([self.task.loss(model, part) for part in batch]).mean()

    def evaluate(self, model: nn.Module, site: Site) -> Mapping[str, Measured]:
        return self.task.evaluate(model, site)


class _Shards:
    """The data of some shards, side by side."""

    def __init__(self, parts: Sequence[TaskData]) -> None:
        self.parts = parts
        self.notes: Sequence[str] = ()

    def __len__(self) -> int:
        return min(map(len, self.parts))

    def batch(self, indices: Tensor) -> list[Any]:
        return [part.batch(indices) for part in self.parts]

    def digest(self) -> str:
        return "+".join(part.digest() for part in self.parts)
