"""Running a report's run again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from safetensors.torch import load_file, save_file

from peer.localswarm.session import SessionOptions, simulate
from peer.reproduce import compare, reproduce
from relayswarm import config as run_config
from relayswarm.errors import ConfigError, ExitCode

CONFIG = """
run_id = "again"
peers = 3
steps = 8
[task]
name = "quadratics"
options = {dimension = 3, gradient_noise = 0.5}
[topology]
graph = "chain"
[faults]
drop = 0.2
[[faults.crash]]
peer = "peer-2"
at_step = 3
rejoin_after_s = 1.0
"""


@pytest.fixture
def report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    place = tmp_path / "report"
    config = run_config.parse(CONFIG)
    assert simulate(config, SessionOptions(place, "cpu")) is ExitCode.DONE
    capsys.readouterr()
    return place


def again(report: Path, **options: Any) -> int:
    """The exit code of `relayswarm reproduce`."""
    try:
        reproduce(report, device="cpu", **options)
    except typer.Exit as ended:
        return ended.exit_code
    raise AssertionError("it ended without an exit code")


def change(path: Path, edit: Callable[[Any], object]) -> None:
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def test_a_report_is_reproduced_bit_by_bit(
    report: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert again(report, output=tmp_path / "new") == 0
    said = capsys.readouterr().out
    assert "reproduced" in said
    assert "differs" not in said
    compared = {c.what: c for c in compare(report, tmp_path / "new")}
    assert all(c.same for c in compared.values())
    assert {"peer-0: model", "peer-2: model", "cost", "consensus model: loss"} <= compared.keys()


def test_another_number_is_found_and_shown_in_full(
    report: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def edit(content: Any) -> None:
        content["peers"][1]["metrics"]["loss"] *= 1 + 1e-9

    change(report / "report.json", edit)
    assert again(report) == ExitCode.DIFFERENT
    said = capsys.readouterr().out
    assert "peer-1: loss" in said
    assert said.count("differs") == 1
    assert again(report, tolerance=1e-8) == 0


def test_another_bit_in_a_model_is_found(report: Path) -> None:
    path = report / "models" / "peer-0.safetensors"
    tensors = load_file(path)
    name = next(iter(tensors))
    tensors[name].view(torch.int64)[0] ^= 1
    save_file(tensors, path)
    assert again(report) == ExitCode.DIFFERENT


def test_what_was_run_counts_not_what_runs_now(report: Path) -> None:
    """A manifest that says another seed gives another run."""
    change(report / "manifest.json", lambda content: content["config"].update(seed=9))
    assert again(report) == ExitCode.DIFFERENT


def test_no_report_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="manifest"):
        again(tmp_path)


def test_the_report_is_not_overwritten(report: Path) -> None:
    with pytest.raises(ConfigError, match="the report itself"):
        again(report, output=report)
