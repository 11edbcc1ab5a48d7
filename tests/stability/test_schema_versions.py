"""Files of earlier versions are read, files of later ones refused by name.

`version-N` holds what releases wrote while N was the newest; nothing in it is ever edited.
"""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from peer import report_files, reproduce
from peer.training import checkpoint
from relayswarm import config
from relayswarm.errors import ConfigError

OLD = Path(__file__).parent / "version-1"


def refusal(read: Any, *arguments: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        read(*arguments)
    return str(caught.value)


# --- run config -------------------------------------------------------------------------------


def test_a_config_of_version_1_is_read_whole() -> None:
    read = config.load(OLD / "run.toml")
    assert read.schema_version == 1
    assert read.algorithm.neighbour_weights == {"peer-1": 2.0}
    assert read.faults.crash[1].at_step == 4
    assert config.parse(read.to_toml()) == read


def test_a_config_without_a_version_is_of_version_1() -> None:
    assert config.parse("peers = 3").schema_version == 1


def test_a_config_of_a_newer_release_is_refused_before_its_new_keys_are() -> None:
    text = "new_key = 1\nschema_version = 2\n[faults]\ndrop = 'often'"
    assert refusal(config.parse, text) == (
        "schema_version = 2: written for a newer release; this one reads versions up to 1; "
        "install the release that wrote it, or a newer one"
    )


@pytest.mark.parametrize("version", ["0", "true", '"1"', "1.0"])
def test_what_is_no_version_is_refused(version: str) -> None:
    text = refusal(config.parse, f"schema_version = {version}")
    assert "no version of this format; it is a whole number from 1 to 1" in text


# --- checkpoint -------------------------------------------------------------------------------


def newer_checkpoint(path: Path) -> None:
    """The old one as a later release might write it: another version, another field."""
    with safe_open(OLD / "checkpoint-00000001.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        header = json.loads(file.metadata()["relayswarm"])
    del header["format"]
    text = json.dumps(header | {"schema_version": 2, "compression": "none"})
    metadata = {"relayswarm": text, "sha256": checkpoint._checksum(tensors, text)}
    save_file(tensors, path, metadata)


def test_a_checkpoint_of_version_1_is_read() -> None:
    found = checkpoint.load_latest(OLD)
    assert found is not None
    assert (found.run_id, found.peer, found.step) == ("run", "peer-0", 1)
    assert found.tensors["optimizer/0/momentum_buffer"].dtype is torch.float64
    assert found.values["optimizer"] == "sgd"


def test_a_checkpoint_says_its_version(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, checkpoint.Checkpoint("run", "peer-0", 1, 7))
    with safe_open(path, "pt") as file:
        assert json.loads(file.metadata()["relayswarm"])["schema_version"] == 1


def test_a_checkpoint_of_a_newer_release_is_not_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An older one beside it would throw away what was trained since."""
    shutil.copy(OLD / "checkpoint-00000001.safetensors", tmp_path)
    newer = tmp_path / "checkpoint-00000002.safetensors"
    newer_checkpoint(newer)
    with caplog.at_level(logging.WARNING):
        text = refusal(checkpoint.load_latest, tmp_path)
    assert f"schema_version in {newer} = 2: written for a newer release" in text
    assert caplog.text == ""
    newer.unlink()
    assert checkpoint.load_latest(tmp_path) is not None


# --- report -----------------------------------------------------------------------------------


def test_a_report_of_version_1_is_read() -> None:
    report = OLD / "report"
    manifest = report_files.read(report, report_files.MANIFEST)
    assert reproduce.config_of(manifest, report).task.name == "quadratics"
    compared = list(reproduce.compare(report, report))
    assert len(compared) > 10
    assert all(one.same for one in compared)


@pytest.mark.parametrize("name", ["report.json", "manifest.json"])
def test_a_report_of_a_newer_release_is_refused(tmp_path: Path, name: str) -> None:
    shutil.copytree(OLD / "report", tmp_path, dirs_exist_ok=True)
    content = json.loads((tmp_path / name).read_text())
    (tmp_path / name).write_text(json.dumps(content | {"schema_version": 2}))
    text = refusal(lambda: list(reproduce.compare(tmp_path, tmp_path)))
    assert f"schema_version in {tmp_path / name} = 2: written for a newer release" in text


@pytest.mark.parametrize("content", ["", "[]", "{}", "null", '{"schema_version": "1"}'])
def test_what_is_no_report_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "report.json").write_text(content)
    assert str(tmp_path) in refusal(report_files.read, tmp_path, "report.json")
