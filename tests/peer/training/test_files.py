from __future__ import annotations

from pathlib import Path

import pytest
import torch

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


def test_a_folder_is_made_and_left_empty(tmp_path: Path) -> None:
    require_writable(tmp_path / "new" / "deep", "--state-dir")
    assert list((tmp_path / "new" / "deep").iterdir()) == []


def test_a_folder_that_cannot_be_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written") as caught:
        require_writable(tmp_path / "file" / "state", "--state-dir")
    assert caught.value.field == "--state-dir"
