"""`digits`: scikit-learn's 1,797 handwritten digits, 8 by 8 pixels. Needs no download.

The split is fixed, whatever the run's seed: of each class a fifth, drawn with a constant seed,
is the test set (359 samples), the rest is for training (1,438).
"""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from peer.tasks.classification import ImageClassification, Labelled
from peer.tasks.data_files import require_common
from relayswarm.errors import DataError
from relayswarm.task import Site

_SAMPLES, _PIXELS = 1797, 64
_TEST_PART = 0.2
_SPLIT_SEED = 20211  # constant: the test set must not depend on the run


class Digits(ImageClassification):
    """Ten classes, a convolutional network of 21,546 parameters without normalisation."""

    name = "digits"
    pixel_mean, pixel_std = 4.88, 6.02  # pixels are 0 to 16

    def optimizer_defaults(self) -> Mapping[str, Any]:
        return {
            "name": "sgd",
            "lr": 0.1,
            "momentum": 0.9,
            "nesterov": True,
            "schedule": "cosine",
        }

    def model(self) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * 4 * 4, 32),
            nn.ReLU(),
            nn.Linear(32, 10),
        )

    def train_set(self, site: Site) -> Labelled:
        require_common(site, self.name)
        return _split()[0]

    def test_set(self, site: Site) -> Labelled:  # noqa: ARG002
        return _split()[1]


@lru_cache(maxsize=1)
def _split() -> tuple[Labelled, Labelled]:
    """(training set, test set)."""
    table = _read_table()
    labels = table[:, _PIXELS]
    generator = np.random.default_rng(_SPLIT_SEED)
    is_test = np.zeros(len(table), dtype=bool)
    for label in range(10):
        members = generator.permutation(np.flatnonzero(labels == label))
        is_test[members[: round(_TEST_PART * len(members))]] = True
    return _images(table[~is_test]), _images(table[is_test])


def _images(rows: NDArray[np.int64]) -> Labelled:
    pixels = rows[:, :_PIXELS].astype(np.uint8).reshape(-1, 8, 8)
    return Labelled(torch.from_numpy(pixels), torch.from_numpy(rows[:, _PIXELS].copy()))


def _read_table() -> NDArray[np.int64]:
    """The packaged table: 64 pixels and the class in each row.

    Read as a file, because importing scikit-learn costs more than a second of a peer's start.
    """
    spec = find_spec("sklearn")
    if spec is None or not spec.submodule_search_locations:
        raise DataError(
            "task.name", "digits", "scikit-learn is not installed", "pip install scikit-learn"
        )
    path = Path(spec.submodule_search_locations[0], "datasets", "data", "digits.csv.gz")
    try:
        with gzip.open(path, "rt", encoding="ascii") as file:
            table = np.loadtxt(file, delimiter=",", dtype=np.int64)
    except (OSError, EOFError, ValueError) as error:
        raise DataError(
            "task.name", str(path), f"cannot be read ({error})", "reinstall scikit-learn"
        ) from error
    if table.shape != (_SAMPLES, _PIXELS + 1):
        raise DataError(
            "task.name", str(path), f"has shape {table.shape}", "reinstall scikit-learn"
        )
    return table
