"""Tasks in files: finding them, and the line at which their code went wrong."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from peer.tasks.files import home_of, located
from peer.tasks.registry import load_task
from relayswarm.config import TaskConfig, parse
from relayswarm.errors import ConfigError, TaskError
from relayswarm.task import Task

LINE = """
import torch
import helper_of_line
from relayswarm import Measured, Options, Task, TensorData


class LineOptions(Options):
    slope: "float" = helper_of_line.SLOPE


class Line(Task):
    name = "line"
    Options = LineOptions

    def model(self):
        return torch.nn.Linear(1, 1)

    def data(self, site):
        x = torch.arange(8.0)[:, None]
        return TensorData(x, self.options.slope * x)

    def loss(self, model, batch):
        x, y = batch
        return (model(x) - y).square().mean()

    def evaluate(self, model, site):
        return {"loss": Measured(0.0)}
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "helper_of_line.py").write_text("SLOPE = 2.5\n")
    path = tmp_path / "task.py"
    path.write_text(LINE)
    yield path
    sys.modules.pop("helper_of_line", None)


def loaded(file: Path, name: str = "line", **options: object) -> Task:
    return load_task(TaskConfig(name=name, file=str(file), options=options))


def test_a_task_is_found_by_its_name_with_options_and_modules_beside_it(file: Path) -> None:
    task = loaded(file)
    assert type(task).__name__ == "Line"
    assert task.options.slope == 2.5
    assert (
        load_task(TaskConfig(name="line", file=str(file), options={"slope": 3})).options.slope == 3
    )


def test_a_file_is_loaded_once_and_again_when_it_has_changed(file: Path) -> None:
    first = type(loaded(file))
    assert type(loaded(file)) is first
    file.write_text(LINE.replace("square()", "abs()"))
    os.utime(file, ns=(1, 1))
    assert type(loaded(file)) is not first


def test_modules_beside_it_hide_no_installed_one(file: Path) -> None:
    (file.parent / "torch.py").write_text("raise RuntimeError('the wrong torch')\n")
    loaded(file)
    assert sys.path[-1] == str(file.parent)


def test_another_name_is_answered_with_those_in_the_file(file: Path) -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'line'\? tasks in it: line; ") as caught:
        loaded(file, "lines")
    assert caught.value.field == "task.name"


def test_imported_classes_are_not_the_files_own(tmp_path: Path) -> None:
    path = tmp_path / "task.py"
    path.write_text("from peer.tasks.digits import Digits\n")
    with pytest.raises(ConfigError, match="it has none"):
        loaded(path, "digits")


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        loaded(tmp_path / "task.py")


def test_a_file_that_is_no_python_is_named(tmp_path: Path) -> None:
    (tmp_path / "task.txt").write_text(LINE)
    with pytest.raises(ConfigError, match=r"give one that ends in .py"):
        loaded(tmp_path / "task.txt")


@pytest.mark.parametrize(
    ("before", "after", "line", "message"),
    [
        ("square().mean()", "square().mean(", 24, r"task.file = '.*': not Python \("),
        ("import torch\n", "import torc\n", 2, "ModuleNotFoundError: No module named 'torc'"),
        ("helper_of_line.SLOPE", "helper_of_line.SLOP", 8, "AttributeError: .*'SLOP'"),
        ("def evaluate", "def evaluates", 11, r"task = 'Line': lacks evaluate\(self, model: "),
    ],
)
def test_what_does_not_load_is_told_by_its_line(
    file: Path, before: str, after: str, line: int, message: str
) -> None:
    file.write_text(LINE.replace(before, after))
    with pytest.raises(TaskError, match=message) as caught:
        loaded(file)
    assert caught.value.place == f"{file}:{line}"
    assert str(caught.value).startswith(f"{file}:{line}: task")


def test_an_error_in_a_module_beside_it_is_told_by_its_line(file: Path) -> None:
    helper = file.parent / "helper_of_line.py"
    helper.write_text("\nSLOPE = 1 / 0\n")
    with pytest.raises(TaskError, match="'SLOPE = 1 / 0': ZeroDivisionError") as caught:
        loaded(file)
    assert caught.value.place == f"{helper}:2"


def test_a_file_needs_a_name() -> None:
    with pytest.raises(ConfigError, match="a file needs a name beside it"):
        parse("[task]\nfile = 'task.py'")


def test_settings_are_not_blamed_on_the_task(file: Path) -> None:
    with (
        pytest.raises(ConfigError, match=r"^data.alpha") as caught,
        located(home_of(type(loaded(file)))),
    ):
        raise ConfigError("data.alpha", 0.1, "gave no cut", "raise it")
    assert not isinstance(caught.value, TaskError)


def test_paths_are_short_within_the_current_folder(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(file.parent)
    assert home_of(type(loaded(file))).place() == "task.py:11"
