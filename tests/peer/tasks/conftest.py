"""Small data sets in the formats that built-in tasks read."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

WORDS = ("shares rose market", "team won match", "court said minister", "chip software web")
"""Of each class of texts, from 1 on."""


def picture(label: int, width: int, height: int, seed: int) -> np.ndarray:
    """A class's own colour, with noise: uint8, shape (height, width, 3)."""
    generator = np.random.default_rng([label, seed])
    colour = np.random.default_rng(label).integers(40, 216, 3)
    noise = generator.integers(-30, 31, (height, width, 3))
    return (colour + noise).clip(0, 255).astype(np.uint8)


@pytest.fixture
def cifar_batches(tmp_path: Path) -> Path:
    """The six binary files, 20 images each, two of every class."""
    names = [f"data_batch_{number}.bin" for number in range(1, 6)]
    for seed, name in enumerate([*names, "test_batch.bin"]):
        records = [
            np.concatenate([[label], picture(label, 32, 32, seed).transpose(2, 0, 1).reshape(-1)])
            for label in list(range(10)) * 2
        ]
        (tmp_path / name).write_bytes(np.stack(records).astype(np.uint8).tobytes())
    return tmp_path


def write_images(folder: Path, classes: int, each: int, sizes=((32, 32),), suffix="png") -> None:
    for label in range(classes):
        place = folder / f"class_{label}"
        place.mkdir(parents=True)
        for seed in range(each):
            pixels = picture(label, *sizes[seed % len(sizes)], seed)
            Image.fromarray(pixels).save(place / f"{seed:04}.{suffix}")


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """Two classes of 12 training and 4 test images, of unlike sizes."""
    sizes = ((50, 40), (36, 64), (41, 41))
    write_images(tmp_path / "train", 2, 12, sizes, "jpg")
    write_images(tmp_path / "val", 2, 4, sizes, "jpg")
    return tmp_path


@pytest.fixture
def text_table(tmp_path: Path) -> Path:
    """`train.csv.gz` with 40 texts and `test.csv` with 12, of four classes."""
    generator = np.random.default_rng(0)
    rows = []
    for number in range(52):
        label = number % 4
        own = WORDS[label].split()
        text = " ".join(generator.permutation([*own, *own, "a", "the"]))
        rows.append([str(label + 1), f'The "{own[0]}", 2', text])
    with gzip.open(tmp_path / "train.csv.gz", "wt", newline="") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows(rows[:40])
    with (tmp_path / "test.csv").open("w", newline="") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows(rows[40:])
    return tmp_path


@pytest.fixture
def short_text(tmp_path: Path) -> Path:
    """`input.txt`, 4,600 characters that repeat."""
    (tmp_path / "input.txt").write_text("to be or not to be, that is the question:\n" * 110)
    return tmp_path
