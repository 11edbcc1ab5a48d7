"""Image classification: what the built-in tasks on images have in common."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from relayswarm.partitioning import partition
from relayswarm.task import Measured, Site, Task, TensorData

_EVALUATION_BATCH = 512  # bounds memory; larger ones are no faster on a CPU


@dataclass(frozen=True, slots=True)
class LabelledImages:
    """Images, uint8, shape (n, height, width), and their classes, int64, shape (n,)."""

    images: Tensor
    labels: Tensor


class ImageClassification(Task):
    """Cross-entropy on grey images; measures mean loss and accuracy on the whole test set.

    Images stay bytes until a batch is used: (pixel - `pixel_mean`) / `pixel_std`, both in the
    pixels' own units, are the model's input, float32, shape (b, 1, height, width).
    """

    pixel_mean: ClassVar[float]
    pixel_std: ClassVar[float]

    @abstractmethod
    def train_set(self, site: Site) -> LabelledImages:
        """All training samples, in an order that is the same everywhere."""

    @abstractmethod
    def test_set(self, site: Site) -> LabelledImages:
        """The test samples, the same for all peers."""

    def data(self, site: Site) -> TensorData:
        full = self.train_set(site)
        cut = partition(full.labels.numpy(), site)
        mine = torch.from_numpy(cut.shards[site.shard])
        return TensorData(full.images[mine], full.labels[mine], notes=cut.notes)

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = batch
        return F.cross_entropy(model(self.inputs(images)), labels)

    def evaluate(self, model: nn.Module, site: Site) -> dict[str, Measured]:
        test = self.test_set(site)
        device = next(model.parameters()).device
        loss, correct = 0.0, 0
        for start in range(0, len(test.labels), _EVALUATION_BATCH):
            labels = test.labels[start : start + _EVALUATION_BATCH].to(device)
            images = test.images[start : start + _EVALUATION_BATCH].to(device)
            logits = model(self.inputs(images))
            loss += float(F.cross_entropy(logits, labels, reduction="sum"))
            correct += int((logits.argmax(dim=1) == labels).sum())
        count = len(test.labels)
        return {
            "loss": Measured(loss / count, count),
            "accuracy": Measured(correct / count, count),
        }

    def inputs(self, images: Tensor) -> Tensor:
        """Bytes, shape (b, height, width), to the model's input, float32, (b, 1, height, width)."""
        return (images.unsqueeze(1).float() - self.pixel_mean) / self.pixel_std
