"""`fashion-mnist`: 60,000 training and 10,000 test images of clothes, 28 by 28 pixels.

Reads the four IDX files (plain or .gz) from the data folder or its subfolder `fashion-mnist`;
https://github.com/zalandoresearch/fashion-mnist has them.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from peer.tasks.classification import ImageClassification, Labelled, SampleOptions
from peer.tasks.data_files import data_folder, locate
from peer.tasks.idx import read_idx
from relayswarm.errors import DataError
from relayswarm.task import Site

_SIDE, _CLASSES = 28, 10


class FashionMnistOptions(SampleOptions):
    """`network`: two convolutions without normalisation that shrink the image by maxima over
    windows, 80,602 parameters; or, at a third of the time, by their own strides, 80,858."""

    network: Literal["pooled", "strided"] = "pooled"


class FashionMnist(ImageClassification):
    """Ten classes, a convolutional network without normalisation."""

    name = "fashion-mnist"
    Options = FashionMnistOptions
    options: FashionMnistOptions
    pixel_mean, pixel_std = 72.9, 90.0

    def optimizer_defaults(self) -> Mapping[str, Any]:
        return {
            "name": "sgd",
            "lr": 0.05,
            "momentum": 0.9,
            "nesterov": True,
            "schedule": "cosine",
        }

    def model(self) -> nn.Module:
        if self.options.network == "strided":
            return nn.Sequential(
                nn.Conv2d(1, 16, 5, stride=2, padding=2),
                nn.ReLU(),
                nn.Conv2d(16, 32, 3, stride=2, padding=1),
                nn.ReLU(),
                nn.Flatten(),
                nn.Linear(32 * 7 * 7, 48),
                nn.ReLU(),
                nn.Linear(48, _CLASSES),
            )
        return nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32 * 7 * 7, 48),
            nn.ReLU(),
            nn.Linear(48, _CLASSES),
        )

    def train_set(self, site: Site) -> Labelled:
        return _load(data_folder(site, self.name), "train")

    def test_set(self, site: Site) -> Labelled:
        return _load(data_folder(site, self.name), "t10k")


@lru_cache(maxsize=2)
def _load(folder: Path, part: str) -> Labelled:
    image_file = _locate(folder, f"{part}-images-idx3-ubyte")
    label_file = _locate(folder, f"{part}-labels-idx1-ubyte")
    images, labels = read_idx(image_file, 3), read_idx(label_file, 1)
    if images.shape[1:] != (_SIDE, _SIDE):
        raise _mismatch(image_file, f"holds images of shape {images.shape[1:]}, not (28, 28)")
    if len(images) != len(labels):
        raise _mismatch(label_file, f"holds {len(labels)} labels for {len(images)} images")
    if len(labels) == 0 or labels.max() >= _CLASSES:
        raise _mismatch(label_file, "is empty or holds a class above 9")
    return Labelled(torch.tensor(images), torch.tensor(labels.astype(np.int64)))


def _locate(folder: Path, name: str) -> Path:
    remedy = "download the four files from github.com/zalandoresearch/fashion-mnist"
    return locate(folder, FashionMnist.name, (name, f"{name}.gz"), remedy)


def _mismatch(path: Path, problem: str) -> DataError:
    return DataError("data file", str(path), problem, "download all four files again")
