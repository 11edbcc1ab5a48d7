"""model.json: written, read back, and held against the model beside it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from peer.hand_over import DESCRIPTION, MODEL, HandOver, digest_of, read, write
from relayswarm.errors import ConfigError


def handed_over(folder: Path) -> HandOver:
    (folder / MODEL).write_bytes(b"a model")
    what = HandOver(
        run_id="run",
        config_sha256="00",
        peer="peer-0",
        shard=0,
        step=7,
        model_sha256=digest_of(folder / MODEL),
        is_common=True,
        participants=["peer-0"],
        weights={"peer-0": 1.0},
        missing=[],
        metrics={"loss": None},
        swarm_metrics=None,
        best_swarm_metrics=None,
        versions={},
        run_config="steps = 7\n",
    )
    write(folder, what)
    return what


def test_what_was_written_is_read(tmp_path: Path) -> None:
    assert read(tmp_path) is None
    assert handed_over(tmp_path) == read(tmp_path)


def test_what_cannot_be_written_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    """As on a disk that the model has filled."""
    (tmp_path / f"{DESCRIPTION}.partial").mkdir()
    with pytest.raises(ConfigError, match=r"--state-dir = .*cannot be written"):
        handed_over(tmp_path)


def test_one_without_sites_is_read_and_one_with_more_fields(tmp_path: Path) -> None:
    what = handed_over(tmp_path)
    content = json.loads((tmp_path / DESCRIPTION).read_text(encoding="utf-8"))
    assert content.pop("sites") == {}
    (tmp_path / DESCRIPTION).write_text(json.dumps(content | {"later": 1}), "utf-8")
    assert read(tmp_path) == what


def test_another_model_beside_it_is_found_out(tmp_path: Path) -> None:
    handed_over(tmp_path)
    (tmp_path / MODEL).write_bytes(b"another")
    with pytest.raises(ConfigError, match="another model"):
        read(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema_version": 1}'])
def test_what_cannot_be_read_is_an_error_that_says_what_to_do(tmp_path: Path, text: str) -> None:
    handed_over(tmp_path)
    (tmp_path / DESCRIPTION).write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match="remove it to train anew"):
        read(tmp_path)


def test_one_of_a_newer_release_is_refused(tmp_path: Path) -> None:
    handed_over(tmp_path)
    content = json.loads((tmp_path / DESCRIPTION).read_text(encoding="utf-8"))
    (tmp_path / DESCRIPTION).write_text(json.dumps(content | {"schema_version": 99}), "utf-8")
    with pytest.raises(ConfigError, match="schema_version"):
        read(tmp_path)
