"""Targets: files, and text in them. Run configs and checkpoints."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save

from peer.training import checkpoint
from peer.training.checkpoint import Checkpoint
from relayswarm import config as run_config
from relayswarm.errors import ConfigError


def config(data: bytes) -> bool:
    """The text of a run config."""
    try:
        found = run_config.parse(data.decode("utf-8", "replace"))
    except ConfigError:
        return False
    assert run_config.parse(found.to_toml()) == found
    return True


def config_seeds() -> Iterator[bytes]:
    yield run_config.parse("").to_toml().encode()
    yield (
        b'run_id = "a"\npeers = 2\n[algorithm]\nname = "swarmsgd"\noptions = { script = [["a", '
        b'"b", 3]] }\n[faults]\ndrop = 0.1\nslow = { a = 2 }\n[[faults.edge]]\nsender = "a"\n'
        b'receiver = "b"\n[[faults.crash]]\npeer = "a"\nat_s = 1.0\n[[faults.partition]]\n'
        b'start_s = 1\nend_s = 2\ngroup = ["a"]\n'
    )


_folder = tempfile.TemporaryDirectory(
    prefix="relayswarm-fuzz-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None
)


def checkpoints(data: bytes) -> bool:
    """A checkpoint file; or, behind a 1, the JSON of its header, with a right checksum over it."""
    directory = Path(_folder.name)
    file = directory / "checkpoint-00000001.safetensors"
    if data[:1] == b"\1":
        text = data[1:].decode("utf-8", "replace")
        tensors = {"vector": torch.zeros(2)}
        metadata = {"relayswarm": text, "sha256": checkpoint._checksum(tensors, text)}
        data = save(tensors, metadata)
    file.write_bytes(data)
    try:
        found = checkpoint.load_latest(directory)
        assert found is not None
        assert found.step >= 0
        found.require("run", "peer-0", 7)
    except ConfigError:
        return False
    return True


def checkpoint_seeds() -> Iterator[bytes]:
    sound = Checkpoint("run", "peer-0", 4, 7, {"vector": torch.ones(2)}, {"optimizer": "sgd"})
    with tempfile.TemporaryDirectory() as folder:
        yield checkpoint.save(Path(folder), sound).read_bytes()
    header = {"schema_version": 1, "run_id": "run", "peer": "peer-0", "step": 4, "fingerprint": 7}
    yield b"\1" + json.dumps({**header, "values": {}}).encode()


def config_words() -> Iterator[str]:
    """Of run configs: sections, fields, and values."""
    for name, field in run_config.RunConfig.model_fields.items():
        yield name
        yield from getattr(field.annotation, "model_fields", ())
    yield from ("true", "false", "nan", "inf", "1e400", "0x7f", "1979-05-27", "[[faults.edge]]")
