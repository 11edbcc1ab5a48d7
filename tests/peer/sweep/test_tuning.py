"""Tuned rates of real runs, and what is told of the search."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from peer.sweep.cell import Job, run_cell
from peer.sweep.tuning import TuningJob, tune, with_rate
from relayswarm.errors import ExitCode


def test_bisection_reaches_the_target_in_the_fewest_steps(cells) -> None:
    """Two peers are exact gradient descent on a quadratic with curvature from 0.5 to 1: the best
    constant rate for many steps is 2 / (0.5 + 1), and what was found is no worse than its
    neighbours."""
    cell = cells(overrides=("peers=2", "steps=40"))[0]
    found = tune(TuningJob(cell))
    assert found["procedure"] == "bisection"
    assert found["rate"] == pytest.approx(4 / 3, rel=0.15)
    assert found["converged"] == found["replicas"] == 3

    def steps_at(rate: float) -> int:
        tuned = cells(overrides=("peers=2", "steps=40", f"optimizer.lr={rate}"))[0]
        steps = run_cell(Job(tuned, target=1e-6))["steps_to_target"]
        return 99 if steps is None else int(steps)

    best = steps_at(found["rate"])
    assert best < 40
    assert best <= min(steps_at(found["rate"] / 1.3), steps_at(found["rate"] * 1.3))


def test_everything_that_was_tried_is_told(cells) -> None:
    found = tune(TuningJob(cells(overrides=("peers=2", "steps=10"))[0]))
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    trials = found["trials"]
    assert len({(trial["rate"], trial["seed"]) for trial in trials}) == len(trials)
    assert found["rate"] in {trial["rate"] for trial in trials}
    assert any(not trial["converged"] for trial in trials)  # rates were raised until it diverged
    assert all(trial["score"] is None for trial in trials if not trial["converged"])
    assert {trial["seed"] for trial in trials} == {0, 1, 2}


def test_the_grid_begins_at_the_centralized_rate_times_the_correction(cells) -> None:
    """Of a task with samples; a chain of 4 has the factor 3/2."""
    overrides = ("task.name=digits", "task.options={}", "steps=15", "seed=3")
    found = tune(TuningJob(cells(overrides=overrides)[0]))
    assert found["procedure"] == "grid"
    alone = found["centralized"]
    assert alone["correction"] == 1.5
    start = alone["rate"] * 1.5
    rates = [trial["rate"] for trial in found["trials"] if trial["seed"] == 3]
    assert start in rates
    assert {start * 2, start / 2} <= set(rates) or found["rate"] != start
    scores = {t["rate"]: t["score"] for t in found["trials"] if t["seed"] == 3 and t["score"]}
    assert scores.get(found["rate"]) == min(scores.values()) or found["converged_at"][1:]


def test_a_tuned_sweep_runs_each_combination_at_its_own_rate(swept, tmp_path: Path) -> None:
    axes = ("algorithm=relaysgd,d2",)
    done = swept(tmp_path, *axes, seeds=2, tune=True, target=1e-2)
    told = {
        found["combination"]: found for found in json.loads((tmp_path / "tuning.json").read_text())
    }
    for row in done.rows:
        found = told[f"algorithm={row['algorithm']}"]
        assert row["lr"] == found["rate"]
        assert row["tried_rates"] == len({trial["rate"] for trial in found["trials"]})
        assert (row["converged_replicas"], row["replicas"]) == (3, 3)
    assert all(row["steps_to_target"] for row in done.rows)
    again = swept(tmp_path, *axes, seeds=2, tune=True, target=1e-2)
    assert not again.notices
    assert again.rows == done.rows


def test_with_rate_changes_nothing_else(cells) -> None:
    config = cells()[0].config
    assert with_rate(config, 0.2) == config
    assert with_rate(config, 0.3).optimizer.lr == 0.3


def test_a_peer_without_data_has_no_say_in_a_rate(cells) -> None:
    """It measures nothing, and has no loss that could fall."""
    settings = ("peers=3", "steps=10", "data.forward=['peer-0']")
    found = tune(TuningJob(cells(overrides=settings)[0]))
    assert found["converged"] == 3
    row = run_cell(Job(cells(overrides=(*settings, f"optimizer.lr={found['rate']}"))[0]))
    assert row["peers_finished"] == 3
    assert row["worst_suboptimality"] >= row["mean_suboptimality"] > 0


# --- what there is to compare rates by ----------------------------------------------------------

TASK = """
import torch
from relayswarm import Measured, Task


class Samples:
    notes = ()

    def __init__(self, inputs):
        self.inputs = inputs

    def __len__(self):
        return len(self.inputs)

    def batch(self, indices):
        return self.inputs[indices]

    def digest(self):
        return "always the same"


class Theirs(Task):
    name = "theirs"

    def optimizer_defaults(self):
        return {{"lr": 0.1}}

    def model(self):
        return torch.nn.Linear(2, 1)

    def data(self, site):
        return Samples(torch.linspace(0, 1, {samples} * 2).reshape(-1, 2))

    def loss(self, model, batch):
        return (model(batch) - 1).square().mean()

    def evaluate(self, model, site):
        loss = float(self.loss(model, self.data(site).batch(slice(None))))
        return {measured}
"""


@pytest.fixture
def theirs(tmp_path: Path) -> Callable[..., tuple[str, ...]]:
    """Overrides for a task in a file, of so many samples, that measures this."""

    def theirs(measured: str, samples: int = 8) -> tuple[str, ...]:
        file = tmp_path / "theirs.py"
        file.write_text(TASK.format(measured=measured, samples=samples))
        task = ("task.name=theirs", "task.options={}", f"task.file={file}")
        return (*task, "peers=2", "steps=10")

    return theirs


@pytest.mark.parametrize("samples", [1, 8])
def test_a_task_that_measures_nothing_cannot_be_tuned(
    theirs, relayswarm, capsys: pytest.CaptureFixture[str], samples: int
) -> None:
    given = [word for text in theirs("{}", samples) for word in ("--set", text)]
    assert relayswarm("simulate", *given, "--graph=chain", "--tune", "--jobs=1") == ExitCode.USAGE
    error = capsys.readouterr().err
    assert error.startswith("error: task.name = 'theirs': its evaluate measures nothing at peer-0")
    assert "leave out --tune and give --lr" in error
    assert len(error.splitlines()) == 1


def test_a_peer_that_measures_nothing_has_no_say_in_a_rate(theirs, cells) -> None:
    here = "{'loss': Measured(loss)} if site.shard == 0 else {}"
    found = tune(TuningJob(cells(overrides=theirs(here))[0]))
    assert all(trial["score"] for trial in found["trials"] if trial["converged"])
    everywhere = tune(TuningJob(cells(overrides=theirs("{'loss': Measured(loss)}"))[0]))
    assert found["rate"] == everywhere["rate"]


def test_full_gradients_without_a_suboptimality_are_tuned_by_what_is_measured(
    theirs, cells
) -> None:
    found = tune(TuningJob(cells(overrides=theirs("{'loss': Measured(loss)}", samples=1))[0]))
    assert found["procedure"] == "grid"
    assert all(trial["score"] for trial in found["trials"] if trial["converged"])
