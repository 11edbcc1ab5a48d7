"""`relayswarm simulate` as it is typed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner, Result

import peer
from peer.cli import build_app

SMALL = [
    "--task=quadratics", "--peers=4", "--steps=10", "--graph=chain",
    "--set", "task.options={dimension = 3}",
]  # fmt: skip


@pytest.fixture
def simulate() -> Callable[..., Result]:
    def run(*arguments: str) -> Result:
        return CliRunner().invoke(build_app("simulate"), ["simulate", *SMALL, *arguments])

    return run


def test_a_sweep_says_what_it_did_and_where_it_is(simulate, tmp_path: Path) -> None:
    ended = simulate(
        "--sweep=algorithm=relaysgd,d2", "--seeds=2", "--jobs=1", f"--output={tmp_path}"
    )
    assert ended.exit_code == 0, ended.output
    assert "run 4 of 4: algorithm=d2, seed 1" in ended.output
    assert "4 rows" in ended.output
    assert len((tmp_path / "results.csv").read_text().splitlines()) == 5


def test_a_sweep_for_programs(simulate, tmp_path: Path) -> None:
    ended = simulate("--seeds=2", "--jobs=1", f"--output={tmp_path}", "--json")
    events = [json.loads(line) for line in ended.stdout.splitlines()]
    assert [event["event"] for event in events] == ["run", "run", "finished"]
    assert events[1] == {"event": "run", "name": "the run, seed 1", "done": 2, "total": 2}


def test_one_run_gives_a_report_with_what_it_cost(simulate, tmp_path: Path) -> None:
    ended = simulate(f"--report={tmp_path}", "--no-baseline")
    assert ended.exit_code == 0, ended.output
    cost = json.loads((tmp_path / "report.json").read_text())["simulation"]
    assert cost["gradient_evaluations"] == 40
    assert cost["stacked"] is False
    assert "40 gradient evaluations" in ended.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--budget=models_per_step=1"], "the run needs 2 models per step"),
        (["--budget=speed=1"], "not of the form NAME=NUMBER"),
        (["--sweep=algorithm=relaysgd,relaygd"], "did you mean 'relaysgd'"),
        (["--sweep=graph=ring", "--engine=slurm"], "known: local, ray"),
        (["--stacked=maybe"], "say auto, on or off"),
        (["--set=faults.slow={peer-7 = 2}", "--seeds=1"], "no peer of this run"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line_before_anything_is_written(
    simulate, tmp_path: Path, arguments: list[str], words: str
) -> None:
    ended = simulate(f"--report={tmp_path / 'r'}", f"--output={tmp_path / 's'}", *arguments)
    assert ended.exit_code == 2
    assert words in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_swarm_that_cannot_train_says_why(simulate, tmp_path: Path) -> None:
    ended = simulate("--algorithm=sgp", "--peers=3", f"--report={tmp_path}")
    assert ended.exit_code == 4
    assert "not a power of two" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_what_may_not_be_meant_is_said_once(simulate, tmp_path: Path) -> None:
    local = ("--set=algorithm.local_steps=4", "--jobs=1", "--no-baseline")
    one = simulate(*local, f"--report={tmp_path / 'one'}")
    many = simulate(
        *local, "--sweep=algorithm=relaysgd,local-sgd", "--seeds=2", f"--output={tmp_path}"
    )
    for ended in (one, many):
        assert ended.exit_code == 0, ended.output
        assert ended.stderr.count("warning: algorithm.local_steps = 4: with more than one") == 1


def test_ctrl_c_ends_a_sweep_at_once_and_keeps_what_is_done(tmp_path: Path) -> None:
    """Twice, as impatient people press it."""
    # A shell in the background has its children ignore SIGINT; so may whoever runs the tests.
    heed = "from signal import *; signal(SIGINT, default_int_handler)"
    main = f"{heed}; from peer.cli import main; main()"
    command = [sys.executable, "-c", main, "simulate", *SMALL]
    command += ["--steps=300", "--seeds=50", "--jobs=2", "--stacked=off", f"--output={tmp_path}"]
    root = Path(peer.__file__).parents[1]
    sweep = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=root, start_new_session=True
    )
    try:
        assert sweep.stdout is not None
        assert "run 1 of 50" in sweep.stdout.readline()
        workers = psutil.Process(sweep.pid).children()
        assert len(workers) >= 2
        for _ in range(2):
            os.killpg(sweep.pid, signal.SIGINT)
        sweep.communicate(timeout=60)
    finally:
        sweep.kill()
    assert sweep.returncode in (130, -signal.SIGINT)
    assert psutil.wait_procs(workers, timeout=60)[1] == []
    assert 1 <= len(list((tmp_path / "cells").iterdir())) < 50
