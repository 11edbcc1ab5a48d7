"""`image-folder`: images in `train/CLASS/` and `val/CLASS/`, as ImageNet is usually kept.

Files are read batch by batch, so that only names have to fit into memory. Training uses a random
part of each image, mirrored half of the time; evaluation its middle.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from pydantic import Field
from torch import Tensor, nn

from peer.tasks.classification import ImageClassification, Labelled, SampleOptions
from peer.tasks.data_files import data_folder, locate
from peer.tasks.image_files import ImageFolder, ImageRows, View, list_folder
from peer.tasks.resnet import resnet18, resnet20, resnet50
from relayswarm.errors import ConfigError, DataError
from relayswarm.task import Site

_LEAST_PART = 0.08  # of an image's area, that a training crop has
_ASPECT = 4 / 3  # at most, and at least its inverse
_TRIES = 10
_MIDDLE = 0.875  # of the shorter side, that evaluation uses


class ImageFolderOptions(SampleOptions):
    """`network`: ResNet-20 with EvoNorm (the RelaySGD paper's), or ResNet-18 or ResNet-50 (the
    SwarmSGD paper's), which have BatchNorm. `classes`: subfolders of `train`. `size`: pixels of a
    side of the square that the network sees."""

    network: Literal["resnet-20-evonorm", "resnet-18", "resnet-50"] = "resnet-20-evonorm"
    classes: int = Field(default=1000, ge=2, le=1 << 20)
    size: int = Field(default=224, ge=32, le=1024)


class ImageFolderTask(ImageClassification):
    """Images of any size in a folder for each class, such as ImageNet; residual networks."""

    name = "image-folder"
    Options = ImageFolderOptions
    options: ImageFolderOptions
    pixel_mean, pixel_std = (123.7, 116.3, 103.5), (58.4, 57.1, 57.4)
    evaluation_batch = 64

    def optimizer_defaults(self) -> Mapping[str, Any]:
        """Table 7 of the RelaySGD paper, which warms up for 5 of 90 epochs, from half the rate."""
        return {
            "name": "sgd",
            "lr": 0.2,
            "momentum": 0.9,
            "nesterov": True,
            "weight_decay": 1e-4,
            "schedule": "step",
            "decay_at": (30 / 90, 60 / 90, 80 / 90),
            "warmup": 5 / 90,
            "warmup_from": 0.5,
        }

    def model(self) -> nn.Module:
        classes = self.options.classes
        if self.options.network == "resnet-20-evonorm":
            return resnet20(classes, evonorm=True)
        return resnet18(classes) if self.options.network == "resnet-18" else resnet50(classes)

    def train_set(self, site: Site) -> Labelled:
        return self._labelled(self._listed(site, ("train",)))

    def test_set(self, site: Site) -> Labelled:
        found = self._listed(site, ("val", "test"))
        expected = self._listed(site, ("train",)).classes
        if found.classes != expected:
            odd = sorted(set(found.classes) ^ set(expected))[0]
            problem = f"has other subfolders than train: {odd} is in one of the two only"
            raise DataError("data folder", str(found.root), problem, "give both the same classes")
        return self._labelled(found)

    def shard(self, full: Labelled, mine: Tensor, notes: Sequence[str]) -> StreamedImages:
        rows = full.inputs
        assert isinstance(rows, ImageRows)
        names = [rows.names[index] for index in mine.tolist()]
        own = ImageRows(rows.root, names, rows.view)
        return StreamedImages(own, full.labels[mine], self.options.size, notes)

    def _labelled(self, folder: ImageFolder) -> Labelled:
        view = partial(middle, size=self.options.size)
        return Labelled(ImageRows(folder.root, folder.names, view), folder.labels)

    def _listed(self, site: Site, names: Sequence[str]) -> ImageFolder:
        remedy = "give it train/CLASS/NAME.jpg and val/CLASS/NAME.jpg"
        place: Path = locate(data_folder(site, self.name), self.name, names, remedy)
        found = list_folder(place)
        if len(found.classes) != self.options.classes:
            raise ConfigError(
                "task.options.classes",
                self.options.classes,
                f"{place} has {len(found.classes)} subfolders",
                f"set it to {len(found.classes)}",
            )
        return found


class StreamedImages:
    """Training samples that are read, and cut out at random, when a batch is asked for."""

    def __init__(
        self, rows: ImageRows, labels: Tensor, size: int, notes: Sequence[str] = ()
    ) -> None:
        self.rows, self.labels, self.size, self.notes = rows, labels, size, tuple(notes)

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        # as many numbers whatever the images are like, and drawn before threads share the work
        draws = torch.rand(len(indices), _TRIES, 4).tolist()
        mirrored = (torch.rand(len(indices)) < 0.5).tolist()
        views: list[View] = [
            partial(random_part, size=self.size, tries=tries, mirrored=is_mirrored)
            for tries, is_mirrored in zip(draws, mirrored, strict=True)
        ]
        return self.rows.read(indices, views), self.labels[indices]

    def digest(self) -> str:
        return self.rows.digest()


def middle(image: Image.Image, size: int) -> Image.Image:
    """The middle seven eighths of the shorter side, as a square of `size` pixels."""
    side = min(image.size) * _MIDDLE
    left, top = (image.width - side) / 2, (image.height - side) / 2
    return _resized(image, (left, top, left + side, top + side), size)


def random_part(
    image: Image.Image, size: int, tries: Sequence[Sequence[float]], *, mirrored: bool
) -> Image.Image:
    """A part of 8 to 100 % of the area and an aspect from 3:4 to 4:3, by the first of the `tries`
    (four numbers from 0 to 1 each) that fits into the image; if none does, the middle."""
    for area, aspect, x, y in tries:
        wanted = (_LEAST_PART + (1 - _LEAST_PART) * area) * image.width * image.height
        ratio = math.exp((2 * aspect - 1) * math.log(_ASPECT))
        width, height = math.sqrt(wanted * ratio), math.sqrt(wanted / ratio)
        if width <= image.width and height <= image.height:
            left, top = x * (image.width - width), y * (image.height - height)
            part = _resized(image, (left, top, left + width, top + height), size)
            break
    else:
        part = middle(image, size)
    return part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if mirrored else part


def _resized(image: Image.Image, box: tuple[float, float, float, float], size: int) -> Image.Image:
    return image.resize((size, size), Image.Resampling.BILINEAR, box=box)
