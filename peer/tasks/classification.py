"""Classification: what the built-in tasks with labelled samples have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from relayswarm.errors import ConfigError
from relayswarm.partitioning import partition
from relayswarm.task import Measured, Options, Site, Task, TaskData, TensorData

_HELD_BACK_SEED = 20213  # constant: what is held back must not depend on the run


class Rows(Protocol):
    """Samples that are looked up by number: a tensor, or files that are read when asked for."""

    def __getitem__(self, indices: Tensor, /) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Labelled:
    """Samples, as many as labels, and their classes: int64, shape (n,)."""

    inputs: Rows
    labels: Tensor


class SampleOptions(Options):
    """`[task.options]` of all these tasks: how much of the data is used.

    Which samples these are is drawn with a constant seed. `validation` training samples are held
    back, and models are measured on them in place of the test set: for choosing a learning rate.
    """

    train_samples: int | None = Field(default=None, ge=1)
    validation: int = Field(default=0, ge=0)
    test_samples: int | None = Field(default=None, ge=1)


class Classification(Task):
    """Cross-entropy; measures mean loss and accuracy on the whole test set, unless its options say
    otherwise. Samples are cut by class: evenly, or by the papers' Dirichlet procedure."""

    Options = SampleOptions
    options: SampleOptions
    evaluation_batch: ClassVar[int] = 512  # bounds memory; larger ones are no faster on a CPU

    @abstractmethod
    def train_set(self, site: Site) -> Labelled:
        """All training samples, in an order that is the same everywhere."""

    @abstractmethod
    def test_set(self, site: Site) -> Labelled:
        """The test samples, the same for all peers."""

    def shard(self, full: Labelled, mine: Tensor, notes: Sequence[str]) -> TaskData:
        """The training samples with these numbers."""
        return TensorData(full.inputs[mine], full.labels[mine], notes=notes)

    def predictions(
        self, model: nn.Module, inputs: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Logits, shape (m, classes), and what they should have said, shape (m,)."""
        return model(inputs), labels

    def data(self, site: Site) -> TaskData:
        full = self.train_set(site)
        used = self._used(len(full.labels))
        cut = partition(full.labels[used].numpy(), site)
        return self.shard(full, used[torch.from_numpy(cut.shards[site.shard])], cut.notes)

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(*self.predictions(model, *batch))

    def evaluate(self, model: nn.Module, site: Site) -> dict[str, Measured]:
        test, chosen = self._measured_on(site)
        device = next(model.parameters()).device
        loss, correct, count = 0.0, 0, 0
        for part in torch.split(chosen, self.evaluation_batch):
            batch = test.inputs[part].to(device), test.labels[part].to(device)
            logits, targets = self.predictions(model, *batch)
            loss += float(F.cross_entropy(logits, targets, reduction="sum"))
            correct += int((logits.argmax(dim=1) == targets).sum())
            count += len(targets)
        return {
            "loss": Measured(loss / count, count),
            "accuracy": Measured(correct / count, count),
        }

    def _used(self, count: int) -> Tensor:
        """Which of the training samples are trained on, ascending."""
        options = self.options
        most = count - options.validation
        wanted = most if options.train_samples is None else options.train_samples
        if not 0 < wanted <= most:
            field = "validation" if most < 1 else "train_samples"
            raise ConfigError(
                f"task.options.{field}",
                getattr(options, field),
                f"there are {count} training samples, of which {options.validation} are held back",
                "lower it",
            )
        if wanted == count:
            return torch.arange(count)
        return _drawn(count)[:wanted].sort().values

    def _measured_on(self, site: Site) -> tuple[Labelled, Tensor]:
        """A set and which samples of it: the test set, or of it what the options ask for; or what
        is held back of the rest."""
        options = self.options
        if options.validation:
            full = self.train_set(site)
            return full, _drawn(len(full.labels))[-options.validation :]
        full = self.test_set(site)
        count = len(full.labels)
        if options.test_samples is None or options.test_samples >= count:
            return full, torch.arange(count)
        return full, _drawn(count)[: options.test_samples]


class ImageClassification(Classification):
    """Images stay bytes until a batch is used: (pixel - `pixel_mean`) / `pixel_std`, both in the
    pixels' own units, one number or one for each channel, are the model's input, float32, shape
    (b, channels, height, width). Grey images are kept without the dimension of the channels."""

    pixel_mean: ClassVar[float | tuple[float, ...]]
    pixel_std: ClassVar[float | tuple[float, ...]]

    def predictions(
        self, model: nn.Module, inputs: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        return model(self.inputs(inputs)), labels

    def inputs(self, images: Tensor) -> Tensor:
        """Bytes, shape (b, height, width) or (b, channels, height, width), to the model's input."""
        pixels = (images if images.dim() == 4 else images.unsqueeze(1)).float()
        mean, std = (_of_channels(each, pixels) for each in (self.pixel_mean, self.pixel_std))
        return (pixels - mean) / std


def _of_channels(value: float | tuple[float, ...], pixels: Tensor) -> float | Tensor:
    """To be combined with pixels, shape (b, channels, height, width)."""
    return pixels.new_tensor(value).view(-1, 1, 1) if isinstance(value, tuple) else value


@lru_cache(maxsize=4)
def _drawn(count: int) -> Tensor:
    """0 to count - 1 in an order that is always the same."""
    return torch.from_numpy(np.random.default_rng(_HELD_BACK_SEED).permutation(count))
