"""Writing a file so that a crash at any moment leaves the old one or the new one, whole."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from relayswarm.errors import ConfigError

TEMPORARY_SUFFIX = ".partial"


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], field: str
) -> None:
    """Write `path` as safetensors: under a temporary name, synced to the disk, then renamed.

    Equal tensors and metadata are equal bytes. Creates missing folders. Raises ConfigError that
    names `field` (the setting that chose the path) when the place cannot be written.
    """
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(dict(tensors), temporary, dict(metadata))
        if metadata:
            _order_metadata(temporary)
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    except (OSError, SafetensorError) as error:  # the library tells of a full disk in its own way
        raise unwritable(field, path, error) from error


def _order_metadata(path: Path) -> None:
    """Sort the metadata in a file's header, which the library writes in an order of chance."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        file.seek(8)
        file.write(text.ljust(size))  # the format fills up with spaces


def apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same with memory of their own for tied ones, as the format wants it."""
    own: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        is_tied = tensor.data_ptr() in seen
        seen.add(tensor.data_ptr())
        own[name] = tensor.clone() if is_tied else tensor.contiguous()
    return own


def require_writable(directory: Path, field: str) -> None:
    """Make the folder, and check that it can be written before anything depends on it.

    Raises ConfigError that names `field`.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise unwritable(field, directory, error) from error


def unwritable(field: str, path: Path, error: Exception) -> ConfigError:
    """What to tell of a place that cannot be written; `field` is the setting that chose it."""
    problem = f"cannot be written ({error})"
    return ConfigError(field, str(path), problem, "choose a writable folder with room")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
