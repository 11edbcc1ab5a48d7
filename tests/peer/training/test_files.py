from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from peer.training.files import TEMPORARY_SUFFIX, require_writable, write_tensors
from relayswarm.errors import ConfigError


def test_what_the_library_cannot_write_is_an_error_of_the_place(tmp_path: Path) -> None:
    """A folder stands where the temporary file would: like a full disk, safetensors' own error."""
    path = tmp_path / "model.safetensors"
    path.write_text("the one before")
    path.with_name(path.name + TEMPORARY_SUFFIX).mkdir()
    with pytest.raises(ConfigError, match="cannot be written") as caught:
        write_tensors(path, {"x": torch.zeros(3)}, {}, "--output")
    assert (caught.value.field, caught.value.value) == ("--output", str(path))
    assert path.read_text() == "the one before"


def test_a_write_that_breaks_off_leaves_the_file_that_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.safetensors"
    write_tensors(path, {"w": torch.ones(2)}, {}, "model file")
    before = path.read_bytes()

    def breaks_off(tensors: object, where: Path, metadata: object) -> None:  # noqa: ARG001
        where.write_bytes(b"half of it")
        raise OSError("No space left on device")

    monkeypatch.setattr("peer.training.files.save_file", breaks_off)
    with pytest.raises(ConfigError, match="No space left"):
        write_tensors(path, {"w": torch.zeros(2)}, {}, "model file")
    assert path.read_bytes() == before


def test_a_folder_is_made_and_left_empty(tmp_path: Path) -> None:
    require_writable(tmp_path / "new" / "deep", "--state-dir")
    assert list((tmp_path / "new" / "deep").iterdir()) == []


def test_a_folder_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written") as caught:
        require_writable(tmp_path / "file" / "state", "--state-dir")
    assert caught.value.field == "--state-dir"


def test_equal_tensors_and_metadata_are_equal_bytes(tmp_path: Path) -> None:
    """Whatever the order: a model that all peers have is one file."""
    texts = ("plain", "", 'quoted "\\" é 漢 \U0001f333', "line\nand\ttab\x01\x7f", "{}", "[1, 2]")
    metadata = {f"key {k}": text for k, text in enumerate(texts)}
    tensors = {"a": torch.arange(5.0), "b": torch.ones(3, dtype=torch.int64)}
    written = set()
    for k in range(10):
        path = tmp_path / f"{k}.safetensors"
        write_tensors(path, tensors, metadata, "model file")
        written.add(path.read_bytes())
    assert len(written) == 1
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == metadata
        assert all(torch.equal(file.get_tensor(name), tensors[name]) for name in tensors)
