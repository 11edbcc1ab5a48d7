"""Folders of images by class, CLASS/NAME.jpg: read when a sample is asked for, never all at once.

Pillow decodes. Which pixels a file becomes depends on its version, and on that of its JPEG library:
machines with different ones differ in the last bit.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from relayswarm.errors import DataError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp"})
_MOST_THREADS = 8

View = Callable[[Image.Image], Image.Image]
"""What is used of an image: a function that makes it as large as all others."""


@dataclass(frozen=True, slots=True)
class ImageFolder:
    """Names of all files below `root`, CLASS/NAME, ascending; the class of each by its place among
    `classes`, which are ascending, too."""

    root: Path
    names: tuple[str, ...]
    labels: Tensor
    classes: tuple[str, ...]


@lru_cache(maxsize=4)
def list_folder(root: Path) -> ImageFolder:
    """Read names only. Raises DataError if there are no images in subfolders."""
    try:
        classes = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
        files = [_images_in(root / name) for name in classes]
    except OSError as error:
        raise _bad_folder(root, f"cannot be read ({error})") from error
    empty = [name for name, found in zip(classes, files, strict=True) if not found]
    if not classes or empty:
        problem = f"its subfolder {empty[0]} holds no images" if empty else "has no subfolders"
        raise _bad_folder(root, problem)
    names = [f"{name}/{file}" for name, found in zip(classes, files, strict=True) for file in found]
    counts = torch.tensor([len(found) for found in files])
    labels = torch.repeat_interleave(counts)
    return ImageFolder(root, tuple(names), labels, tuple(classes))


class ImageRows:
    """The images of some files, uint8, shape (b, 3, height, width), by their numbers."""

    def __init__(self, root: Path, names: Sequence[str], view: View) -> None:
        self.root, self.names, self.view = root, names, view

    def __getitem__(self, indices: Tensor) -> Tensor:
        return self.read(indices, [self.view] * len(indices))

    def read(self, indices: Tensor, views: Sequence[View]) -> Tensor:
        """These images, each through a view of its own; all views give the same size. Raises
        DataError at a file that is no image."""
        paths = [self.root / self.names[index] for index in indices.tolist()]
        return torch.stack(list(_threads().map(_read, paths, views)))

    def digest(self) -> str:
        """SHA-256 of the files' names and sizes: to read all of them would take hours."""
        total = hashlib.sha256()
        for name in self.names:
            total.update(f"{name}\0{(self.root / name).stat().st_size}\0".encode())
        return total.hexdigest()


def _images_in(folder: Path) -> list[str]:
    return sorted(
        entry.name
        for entry in os.scandir(folder)
        if os.path.splitext(entry.name)[1].lower() in SUFFIXES
    )


def _read(path: Path, view: View) -> Tensor:
    try:
        with Image.open(path) as image:
            pixels = np.array(view(image.convert("RGB")))
    except (OSError, SyntaxError, ValueError, UnidentifiedImageError) as error:
        problem = f"cannot be read as an image ({error})"
        raise DataError("data file", str(path), problem, "replace or remove it") from error
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


@lru_cache(maxsize=1)
def _threads() -> ThreadPoolExecutor:
    """Pillow lets others run while it decodes."""
    return ThreadPoolExecutor(min(os.cpu_count() or 1, _MOST_THREADS), "images")


def _bad_folder(root: Path, problem: str) -> DataError:
    return DataError("data folder", str(root), problem, "put images into CLASS/NAME.jpg in it")
