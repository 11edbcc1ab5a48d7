"""The folder that `new` writes."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from peer.newtask.command import FILES, class_name, write_task
from relayswarm import config
from relayswarm.errors import ConfigError, ExitCode

Run = Callable[..., int]


def test_its_files_are_complete(relayswarm: Run, tmp_path: Path) -> None:
    assert relayswarm("new", "deep/my-task.2") == 0
    folder = tmp_path / "deep" / "my-task.2"
    assert {path.name for path in folder.iterdir()} == set(FILES)
    for file in FILES:
        text = (folder / file).read_text()
        assert not any(word in text for word in ("TASK_NAME", "CLASS_NAME", "FOLDER"))
    tree = ast.parse((folder / "task.py").read_text())
    classes = [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
    assert classes == ["MyTask2Options", "MyTask2"]
    run = config.load(folder / "run.toml")
    assert (run.run_id, run.task.name, run.peers) == ("my-task.2", "my-task.2", 4)
    assert run.task.file == str(folder / "task.py")


def test_it_is_checked_and_learns_in_the_simulator(
    relayswarm: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From any folder: the file is found beside the config."""
    assert relayswarm("new", "a/mine") == 0
    assert relayswarm("check", "a/mine/run.toml") == 0
    assert "the task mine can be trained" in capsys.readouterr().out
    assert relayswarm("simulate", "a/mine/run.toml", "--report", "report", "--no-baseline") == 0
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["worst"]["accuracy"] > 0.93  # 0.65 is the share of the larger class


def test_it_writes_over_nothing(
    relayswarm: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "run.toml").write_text("peers = 3")
    assert relayswarm("new", "mine") == ExitCode.USAGE
    assert "FOLDER = 'mine': not empty; choose a new one" in capsys.readouterr().err
    assert (tmp_path / "mine" / "run.toml").read_text() == "peers = 3"


@pytest.mark.parametrize("name", ["2fast", "a b", "-x", "näme", "x" * 51, "a__b"])
def test_a_name_that_would_not_do_later_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="no name for a task"):
        write_task(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        write_task(tmp_path / "file" / "mine")


@pytest.mark.parametrize(
    ("name", "expected"), [("my_task", "MyTask"), ("a-b.c", "ABC"), ("mnist2", "Mnist2")]
)
def test_classes_are_named_as_python_does(name: str, expected: str) -> None:
    assert class_name(name) == expected
