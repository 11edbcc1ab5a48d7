"""Models of a report as files of their own, which are what the report says they are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import relayswarm as package
from peer.export import best
from peer.tasks.registry import load_task
from peer.training.trainer import Trainer, make_site
from relayswarm import config as run_config
from relayswarm.task import Task

Run = Callable[..., int]

TASK = '''
import torch
from relayswarm import Measured, Task, TensorData


class Net(torch.nn.Module):
    """Tied weights, a buffer of floats and one of integers, and a frozen parameter."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Linear(4, 4)
        self.norm = torch.nn.BatchNorm1d(4)
        self.second = torch.nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.shift = torch.nn.Parameter(torch.ones(4), requires_grad=False)

    def forward(self, x):
        return self.second(torch.tanh(self.norm(self.first(x)))) + self.shift


class Tied(Task):
    name = "tied"

    def model(self):
        return Net()

    def data(self, site):
        x = torch.arange(64.0).reshape(16, 4).sin() + site.shard
        return TensorData(x, x.roll(1, 1))

    def loss(self, model, batch):
        x, y = batch
        return torch.nn.functional.mse_loss(model(x), y)

    def evaluate(self, model, site):
        x = torch.linspace(-2, 2, 40).reshape(10, 4)
        return {"loss": Measured(float(self.loss(model, (x, x.roll(1, 1)))), weight=10)}
'''


@pytest.fixture
def report(relayswarm: Run, tmp_path: Path) -> Path:
    """The report of a run in which peers end with different models."""
    (tmp_path / "tied.py").write_text(TASK)
    settings = ("task.name=tied", "task.file=tied.py", "topology.graph=chain", "peers=3", "steps=5")
    words = [word for setting in settings for word in ("--set", setting)]
    assert relayswarm("simulate", *words, "--report", "made", "--no-baseline") == 0
    return tmp_path / "made"


def content(report: Path, name: str) -> Any:
    return json.loads((report / name).read_text())


def evaluate(report: Path, path: Path) -> float:
    """As anybody would: build the task's model, load the file, measure."""
    config = run_config.validate(content(report, "manifest.json")["config"])
    task: Task = load_task(config.task)
    model = task.model()
    model.load_state_dict(load_file(path))
    model.eval()
    with torch.no_grad():
        return float(task.evaluate(model, make_site(config, 0))["loss"].value)


def metadata(path: Path) -> Mapping[str, str]:
    with safe_open(path, "pt") as file:
        found: Mapping[str, str] = file.metadata()
        return found


def test_the_average_is_what_the_report_says(relayswarm: Run, report: Path, tmp_path: Path) -> None:
    assert relayswarm("export", "made", "--output", "model.safetensors") == 0
    found = content(report, "report.json")
    measured = evaluate(report, tmp_path / "model.safetensors")
    assert measured == pytest.approx(found["consensus_model"]["loss"], rel=1e-6)
    assert all(measured != peer["metrics"]["loss"] for peer in found["peers"])


@pytest.mark.parametrize("peer", ["peer-0", "peer-1", "peer-2"])
def test_a_peers_model_is_what_the_report_says(
    relayswarm: Run, report: Path, tmp_path: Path, peer: str
) -> None:
    assert relayswarm("export", "made", "--model", peer, "--output", "one.safetensors") == 0
    (entry,) = (one for one in content(report, "report.json")["peers"] if one["id"] == peer)
    measured = evaluate(report, tmp_path / "one.safetensors")
    assert measured == pytest.approx(entry["metrics"]["loss"], rel=1e-6)


def test_metadata_say_what_it_is(relayswarm: Run, report: Path, tmp_path: Path) -> None:
    assert relayswarm("export", "made", "--model", "peer-1", "--output", "one.safetensors") == 0
    config = content(report, "manifest.json")["config"]
    canonical = json.dumps(config, sort_keys=True, separators=(",", ":")).encode()
    parsed = run_config.validate(config)
    trainer = Trainer(load_task(parsed.task), parsed, make_site(parsed, 0))
    (entry,) = (one for one in content(report, "report.json")["peers"] if one["id"] == "peer-1")
    found = metadata(tmp_path / "one.safetensors")
    assert found == {
        "format": "pt",
        "relayswarm_version": package.__version__,
        "run_id": "run",
        "algorithm": "relaysgd",
        "config_sha256": hashlib.sha256(canonical).hexdigest(),
        "model_fingerprint": f"{trainer.fingerprint:#018x}",
        "model": "peer-1",
        "step": "5",
        "participants": '["peer-0", "peer-1", "peer-2"]',
        "metrics": json.dumps(entry["metrics"]),
    }
    assert found == metadata(report / "models" / "peer-1.safetensors")  # as the report wrote it
    assert metadata(report / "model.safetensors")["model"] == "average"


def test_the_best_is_chosen_by_what_was_measured(
    relayswarm: Run, report: Path, tmp_path: Path
) -> None:
    assert relayswarm("export", "made", "--model", "best", "--output", "best.safetensors") == 0
    found = content(report, "report.json")
    losses = [found["consensus_model"]["loss"], *(p["metrics"]["loss"] for p in found["peers"])]
    measured = evaluate(report, tmp_path / "best.safetensors")
    assert measured == pytest.approx(min(losses), rel=1e-6)


def made_up(average: float | None, *peers: float | None, metric: str = "accuracy") -> Any:
    known = [{"id": f"peer-{k}", "metrics": {metric: value}} for k, value in enumerate(peers)]
    return {"peers": known, "consensus_model": {metric: average}}


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        (made_up(0.9, 0.8, 0.95), "peer-1"),
        (made_up(0.9, 0.9, 0.9), "average"),
        (made_up(0.9, 0.8, 0.95, metric="loss"), "peer-0"),
        (made_up(None, None, 0.1), "peer-1"),
        (made_up(None, None), "average"),
        (made_up(0.5, 0.4) | {"consensus_model": None}, "peer-0"),
    ],
)
def test_which_model_is_best(report: Any, expected: str) -> None:
    assert best(report) == expected


def test_the_average_of_a_part_is_that_part(
    relayswarm: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Heads are local: no model has their mean in it."""
    (tmp_path / "tied.py").write_text(TASK)
    settings = ("task.name=tied", "task.file=tied.py", "topology.graph=chain", "peers=3", "steps=5")
    share = ('share.exclude=["norm.*"]',)
    words = [word for setting in (*settings, *share) for word in ("--set", setting)]
    assert relayswarm("simulate", *words, "--report", "made") == 0
    report = tmp_path / "made"
    assert content(report, "report.json")["consensus_model"] is None
    capsys.readouterr()
    assert relayswarm("export", "made", "--output", "shared.safetensors") == 0
    assert "average of the part that peers share" in capsys.readouterr().out
    peers = [load_file(report / "models" / f"peer-{k}.safetensors") for k in range(3)]
    average = load_file(tmp_path / "shared.safetensors")
    assert average.keys() == {"first.weight", "first.bias", "second.weight", "second.bias"}
    for name, tensor in average.items():
        torch.testing.assert_close(tensor, torch.stack([peer[name] for peer in peers]).mean(0))
    assert metadata(tmp_path / "shared.safetensors")["part"] == "shared"
    assert relayswarm("export", "made", "--model", "best", "--output", "best.safetensors") == 0
    assert "part" not in metadata(tmp_path / "best.safetensors")
    assert "norm.running_mean" in load_file(tmp_path / "best.safetensors")


@pytest.mark.parametrize("model", ["peer-9", "../model", ""])
def test_a_model_that_is_not_there_is_refused(
    relayswarm: Run, report: Path, capsys: pytest.CaptureFixture[str], model: str
) -> None:
    capsys.readouterr()
    assert relayswarm("export", str(report), "--model", model, "--output", "x.safetensors") == 2
    assert "choose one of average, best, peer-0, peer-1, peer-2" in capsys.readouterr().err
    assert not Path("x.safetensors").exists()


def test_a_file_that_is_gone_or_no_model_is_named(
    relayswarm: Run, report: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for change in (Path.unlink, lambda path: path.write_bytes(b"{}")):
        change(report / "models" / "peer-1.safetensors")
        capsys.readouterr()
        options = ("--model", "peer-1", "--output", "x.safetensors")
        assert relayswarm("export", "made", *options) == 2
        assert "its peer-1.safetensors cannot be read" in capsys.readouterr().err
        assert not Path("x.safetensors").exists()


def test_a_place_that_cannot_be_written_is_named(
    relayswarm: Run, report: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    output = str(report / "report.json" / "x.safetensors")
    assert relayswarm("export", "made", "--output", output) == 2
    assert f"--output = {output!r}: cannot be written" in capsys.readouterr().err


def test_a_report_of_before_can_be_exported(relayswarm: Run, report: Path) -> None:
    """One without the model's fingerprint, as version 1 was first written."""
    manifest = content(report, "manifest.json")
    del manifest["model_fingerprint"]
    (report / "manifest.json").write_text(json.dumps(manifest))
    assert relayswarm("export", "made", "--output", "x.safetensors") == 0
    assert "model_fingerprint" not in metadata(Path("x.safetensors"))
