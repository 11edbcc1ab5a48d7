"""Checkpoints: one safetensors file each, whose metadata hold the rest as JSON.

A folder belongs to one peer and holds its last checkpoints (two, where no more are asked for),
numbered in the order they were written. Each carries a checksum over everything in it, so one that
is torn or damaged is noticed and the one before is used: a kill -9 at any moment costs at most one
checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from peer.training.files import TEMPORARY_SUFFIX, apart, unwritable, write_tensors
from peer.training.flat import FlatModel
from relayswarm.errors import ConfigError
from relayswarm.schema import require_readable

KEPT = 2
SCHEMA_VERSION = 1
"""Of what is in them; when to raise it: docs/stability.md."""

DAMAGE = (OSError, SafetensorError, LookupError, ValueError, RecursionError)
"""What reading a file raises that is no whole checkpoint."""

_NAME = re.compile(r"checkpoint-(\d{8})\.safetensors")
_HEADER = {"run_id": str, "peer": str, "step": int, "fingerprint": int, "values": dict}
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a peer needs to go on: `step` is the next one to train.

    `tensors` and `values` (JSON) are whatever its parts put in: a trainer's state, registers,
    the algorithm's own state.
    """

    run_id: str
    peer: str
    step: int
    fingerprint: int
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)

    def require(self, run_id: str, peer: str, fingerprint: int) -> None:
        """Raise ConfigError unless this is a checkpoint of that run, peer and model."""
        wanted = {"run_id": run_id, "peer": peer, "fingerprint": fingerprint}
        for name, value in wanted.items():
            found = getattr(self, name)
            if found != value:
                raise ConfigError(
                    f"checkpoint {name}",
                    found,
                    f"this peer needs {value!r}",
                    "resume with the same config and name, or start in an empty folder",
                )


def save(directory: Path, checkpoint: Checkpoint, kept: int = KEPT) -> Path:
    """Write the next checkpoint into `directory` and remove those older than the last `kept`.

    Raises ConfigError when the folder cannot be written; what was there stays as it was.
    """
    try:
        existing = _existing(directory)
    except OSError as error:  # such as too many open files
        raise unwritable("checkpoint directory", directory, error) from error
    number = 1 + (existing[-1][0] if existing else 0)
    path = directory / f"checkpoint-{number:08d}.safetensors"
    tensors = {name: t.detach().contiguous() for name, t in checkpoint.tensors.items()}
    header = {
        "schema_version": SCHEMA_VERSION,
        "run_id": checkpoint.run_id,
        "peer": checkpoint.peer,
        "step": checkpoint.step,
        "fingerprint": checkpoint.fingerprint,
        "values": checkpoint.values,
    }
    text = json.dumps(header)
    metadata = {"relayswarm": text, "sha256": _checksum(tensors, text)}
    write_tensors(path, tensors, metadata, "checkpoint directory")
    _prune(directory, kept)
    return path


def load_latest(directory: Path) -> Checkpoint | None:
    """The newest checkpoint in `directory` that is whole; None if the folder has no checkpoint.

    A damaged one is passed over with a warning. Raises ConfigError if all are damaged, or if one
    that would be read was written by a newer release: an older one must not take its place.
    """
    existing = _existing(directory)
    problem = ""
    for _, path in reversed(existing):
        try:
            return _read(path)
        except DAMAGE as error:
            problem = problem or str(error)
            _log.warning("checkpoint %s is damaged and passed over: %s", path, error)
    if not existing:
        return None
    raise ConfigError(
        "checkpoint directory",
        str(directory),
        f"all its checkpoints are damaged ({problem})",
        "restore one from a copy, or start in an empty folder",
    )


def newest_step(directory: Path | None) -> int:
    """The step of the newest checkpoint in a folder, unread; 0 if there is none."""
    return max((step for step, _ in _existing(directory)), default=0) if directory else 0


def load_all(directory: Path) -> list[Checkpoint]:
    """All checkpoints in `directory` that are whole, oldest first."""
    found = []
    for _, path in _existing(directory):
        try:
            found.append(_read(path))
        except DAMAGE as error:
            _log.warning("checkpoint %s is damaged and passed over: %s", path, error)
    return found


def forget_later(directory: Path, checkpoint: Checkpoint) -> None:
    """Remove all that was written after that one: a run that goes on from there takes another
    course."""
    later = []
    for _, path in reversed(_existing(directory)):
        try:
            found = _read(path)
        except DAMAGE:
            later.append(path)
            continue
        if (found.step, found.values) == (checkpoint.step, checkpoint.values):
            _remove(later)
            return
        later.append(path)


def export_model(path: Path, flat: FlatModel, metadata: Mapping[str, str]) -> None:
    """Write the model as plain safetensors by the names of its `state_dict`.

    Tied tensors are written under each of their names, so a model of the same class loads the
    file with `load_state_dict(safetensors.torch.load_file(path))`. Raises ConfigError when the
    file cannot be written.
    """
    write_tensors(path, apart(flat.state_dict()), metadata, "model file")


def _existing(directory: Path) -> list[tuple[int, Path]]:
    """Numbers and paths of the checkpoints, oldest first."""
    found = [(_NAME.fullmatch(path.name), path) for path in directory.glob("checkpoint-*")]
    return sorted((int(match[1]), path) for match, path in found if match)


def _prune(directory: Path, kept: int) -> None:
    try:
        old = [path for _, path in _existing(directory)[:-kept]]
        old += directory.glob(f"checkpoint-*{TEMPORARY_SUFFIX}")
    except OSError as error:
        _log.warning("old checkpoints could not be looked for: %s", error)
        return
    _remove(old)


def _remove(old: Iterable[Path]) -> None:
    for path in old:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            _log.warning("old checkpoint %s could not be removed: %s", path, error)


def _read(path: Path) -> Checkpoint:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    text = metadata["relayswarm"]
    if _checksum(tensors, text) != metadata["sha256"]:
        raise ValueError("its checksum does not match its contents")
    header = json.loads(text)
    if not isinstance(header, dict):
        raise ValueError("its header is not that of a checkpoint")
    version = header.pop("schema_version", None) or header.pop("format", None)  # as it was called
    if type(version) is not int or version < 1:
        raise ValueError("its header has no version")
    require_readable(f"schema_version in {path}", version, SCHEMA_VERSION)
    if {name: type(value) for name, value in header.items()} != _HEADER:
        raise ValueError("its header is not that of a checkpoint")
    if header["step"] < 0:
        raise ValueError(f"its step is {header['step']}")
    return Checkpoint(tensors=tensors, **header)


def _checksum(tensors: Mapping[str, Tensor], text: str) -> str:
    total = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        total.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        flat = tensor.cpu().reshape(-1).view(torch.uint8)
        total.update(flat.numpy().data)
    return total.hexdigest()
