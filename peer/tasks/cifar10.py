"""`cifar-10`: 50,000 training and 10,000 test images of ten classes, 32 by 32 pixels in colour.

Reads the data set's binary batches (`data_batch_1.bin` to `data_batch_5.bin`, `test_batch.bin`), or
images in `train/CLASS/` and `test/CLASS/`, from the data folder or its subfolder `cifar-10` or
`cifar-10-batches-bin`.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from peer.tasks.classification import ImageClassification, Labelled, SampleOptions
from peer.tasks.data_files import data_folder, find
from peer.tasks.image_files import ImageRows, list_folder
from peer.tasks.resnet import resnet20
from peer.tasks.vgg import Vgg11
from relayswarm.errors import DataError
from relayswarm.task import Site

_SIDE, _CLASSES = 32, 10
_RECORD = 1 + 3 * _SIDE * _SIDE  # the class, then red, green and blue, row by row
_BATCHES = {
    "train": tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
    "test": ("test_batch.bin",),
}
_BORDER = 4  # pixels by which an augmented image may be shifted
_PLACES = ("cifar-10", "cifar-10-batches-bin", "cifar-10/cifar-10-batches-bin")


class Cifar10Options(SampleOptions):
    """`network`: VGG-11 or ResNet-20, which the papers use (ResNet-20 also with EvoNorm in place of
    BatchNorm). `augment`: shift training images by up to 4 pixels and mirror every other one."""

    network: Literal["vgg-11", "resnet-20", "resnet-20-evonorm"] = "vgg-11"
    augment: bool = True


class Cifar10(ImageClassification):
    """Ten classes of small colour images; VGG-11 without normalisation, or ResNet-20."""

    name = "cifar-10"
    Options = Cifar10Options
    options: Cifar10Options
    pixel_mean, pixel_std = (125.3, 123.0, 113.9), (63.0, 62.1, 66.7)

    def optimizer_defaults(self) -> Mapping[str, Any]:
        """Table 6 of the RelaySGD paper, which warms up for 5 of 200 epochs."""
        return {
            "name": "sgd",
            "lr": 0.05,
            "momentum": 0.9,
            "nesterov": True,
            "weight_decay": 1e-4,
            "schedule": "step",
            "decay_at": (0.75, 0.9),
            "warmup": 5 / 200,
        }

    def model(self) -> nn.Module:
        if self.options.network == "vgg-11":
            return Vgg11(_CLASSES)
        return resnet20(_CLASSES, evonorm=self.options.network == "resnet-20-evonorm")

    def train_set(self, site: Site) -> Labelled:
        return _load(data_folder(site, self.name), "train")

    def test_set(self, site: Site) -> Labelled:
        return _decoded_test_set(data_folder(site, self.name))

    @property
    def is_random(self) -> bool:
        return self.options.augment

    def predictions(
        self, model: nn.Module, inputs: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        images = augmented(inputs) if model.training and self.options.augment else inputs
        return super().predictions(model, images, labels)


def augmented(images: Tensor) -> Tensor:
    """Each image shifted by up to 4 pixels, with black moving in, and mirrored with probability a
    half; shape (b, 3, 32, 32) stays."""
    b, _, height, width = images.shape
    padded = nn.functional.pad(images, (_BORDER,) * 4)
    left, top = torch.randint(2 * _BORDER + 1, (2, b, 1)).to(images.device)
    is_mirrored = (torch.rand(b, 1) < 0.5).to(images.device)
    across = torch.arange(width, device=images.device)
    columns = left + torch.where(is_mirrored, across.flip(0), across)
    rows = top + torch.arange(height, device=images.device)
    image = torch.arange(b, device=images.device)[:, None, None]
    return padded[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


@lru_cache(maxsize=2)
def _load(folder: Path, part: str) -> Labelled:
    place = find(folder, _PLACES, (_BATCHES[part][0], part))
    if place is None:
        raise _missing(folder)
    if place.is_dir():
        found = list_folder(place)
        if len(found.classes) != _CLASSES:
            problem = f"has {len(found.classes)} subfolders, not one for each of 10 classes"
            raise DataError("data folder", str(place), problem, "put images into CLASS/NAME.png")
        return Labelled(ImageRows(place, found.names, _require_size), found.labels)
    records = np.concatenate([_read_batch(place.with_name(name)) for name in _BATCHES[part]])
    images = torch.from_numpy(records[:, 1:].reshape(-1, 3, _SIDE, _SIDE))
    return Labelled(images, torch.from_numpy(records[:, 0].astype(np.int64)))


@lru_cache(maxsize=1)
def _decoded_test_set(folder: Path) -> Labelled:
    full = _load(folder, "test")
    return Labelled(full.inputs[torch.arange(len(full.labels))], full.labels)


def _read_batch(path: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Records, shape (n, 3073)."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _bad_batch(path, f"cannot be read ({error})") from error
    if not content or len(content) % _RECORD:
        raise _bad_batch(path, f"holds {len(content)} bytes, no multiple of {_RECORD}")
    records = np.frombuffer(content, np.uint8).reshape(-1, _RECORD)
    if records[:, 0].max() >= _CLASSES:
        raise _bad_batch(path, f"holds the class {records[:, 0].max()}, above 9")
    return records


def _require_size(image: Image.Image) -> Image.Image:
    if image.size != (_SIDE, _SIDE):
        raise ValueError(f"{image.width} by {image.height} pixels, not {_SIDE} by {_SIDE}")
    return image


def _missing(folder: Path) -> DataError:
    places = ", ".join(_PLACES[:2])
    problem = (
        f"neither it nor its subfolders {places} have data_batch_1.bin or a folder train or test"
    )
    other = find(folder, (*_PLACES, "cifar-10-batches-py"), ("data_batch_1",))
    remedy = "unpack cifar-10-binary.tar.gz from www.cs.toronto.edu/~kriz/cifar.html there"
    if other is not None:
        remedy = f"{other} is of the Python version, a format that can carry code; {remedy}"
    return DataError("data_dir", str(folder), problem, remedy)


def _bad_batch(path: Path, problem: str) -> DataError:
    return DataError("data file", str(path), problem, "unpack cifar-10-binary.tar.gz again")
