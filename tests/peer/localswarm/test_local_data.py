"""Sites that keep their data: each trains on its own folder, weighed by its samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from peer.localswarm.session import SessionOptions, simulate
from relayswarm.config import RunConfig, parse
from relayswarm.errors import ConfigError, DataError

TASK = '''
import torch
from relayswarm import Measured, Task, TensorData


def numbers(site):
    return torch.tensor([float(x) for x in (site.data_dir / "x.txt").read_text().split()]).double()


class Centre(Task):
    """The number nearest to all samples: their mean."""

    name = "centre"

    def optimizer_defaults(self):
        return {"name": "sgd", "lr": 0.25, "momentum": 0.0, "schedule": "constant"}

    def model(self):
        return torch.nn.Linear(1, 1, bias=False).double()

    def data(self, site):
        assert site.is_local and site.data_dir.name == site.peer_id
        return TensorData(numbers(site))

    def loss(self, model, batch):
        return ((model.weight - batch[0]) ** 2).mean()

    def evaluate(self, model, site):
        x = numbers(site)
        return {"loss": Measured(float(((model.weight - x) ** 2).mean()), len(x))}
'''
SAMPLES = {"peer-0": [1.0, 2.0], "peer-1": [10.0], "peer-2": [4.0, 6.0, 4.0, 6.0]}


@pytest.fixture
def sites(tmp_path: Path) -> Path:
    """A folder with a task, and one with data for each site."""
    (tmp_path / "task.py").write_text(TASK)
    for peer, samples in SAMPLES.items():
        (tmp_path / "data" / peer).mkdir(parents=True)
        (tmp_path / "data" / peer / "x.txt").write_text(" ".join(map(str, samples)))
    return tmp_path


def config(sites: Path, *overrides: str) -> RunConfig:
    settings = (
        "peers=3",
        "steps=200",
        "topology.graph=chain",
        "task.name=centre",
        f"task.file={sites / 'task.py'}",
        'data.partition="local"',
        "data.min_samples=1",
        "evaluation.every=50",
    )
    return parse("", [*settings, *overrides])


def report_of(sites: Path, run: RunConfig) -> dict[str, Any]:
    simulate(run, SessionOptions(sites / "report", data_dir=sites / "data", as_json=True))
    return dict(json.loads((sites / "report" / "report.json").read_text()))


def test_sites_that_weigh_by_their_samples_find_the_mean_of_all_samples(sites: Path) -> None:
    from safetensors.torch import load_file

    # losses are means of squares, and a rate of 1/4 makes half a step of each
    report = report_of(sites, config(sites, 'data.weighting="samples"'))
    everything = [x for samples in SAMPLES.values() for x in samples]
    pooled = sum(everything) / len(everything)
    for peer in SAMPLES:
        model = load_file(sites / "report" / "models" / f"{peer}.safetensors")
        assert float(model["weight"].squeeze()) == pytest.approx(pooled, abs=1e-9)
    assert [peer["weight"] for peer in report["peers"]] == [2, 1, 4]
    losses = {p: sum((x - pooled) ** 2 for x in xs) / len(xs) for p, xs in SAMPLES.items()}
    assert report["worst"]["loss"] == pytest.approx(max(losses.values()))
    assert report["mean"]["loss"] == pytest.approx(sum(losses.values()) / 3)
    of_all = sum((x - pooled) ** 2 for x in everything) / len(everything)
    assert report["weighted_mean"]["loss"] == pytest.approx(of_all)
    assert report["swarm_metrics"]["metrics"]["loss"] == pytest.approx(of_all)


def test_where_data_are_local_there_is_no_baseline_and_the_report_says_so(sites: Path) -> None:
    report = report_of(sites, config(sites, "steps=3"))
    assert report["baseline"] is None
    assert report["baseline_small_batch"] is None
    assert any("local" in note for note in report["notes"])


def test_somebody_has_to_say_where_the_data_are(sites: Path) -> None:
    with pytest.raises(ConfigError, match=r"--data-dir = None: .*--data-dir DIR"):
        simulate(config(sites), SessionOptions(sites / "report"))


@pytest.mark.parametrize("task", ["digits", "quadratics"])
def test_data_that_are_the_same_everywhere_are_nobodys_own(sites: Path, task: str) -> None:
    run = parse("", ["peers=3", f"task.name={task}", 'data.partition="local"'])
    with pytest.raises(ConfigError, match=r"data\.partition = 'local': .*lie at no site"):
        simulate(run, SessionOptions(sites / "report", data_dir=sites / "data"))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (['data.partition="dirichlet"'], "needs alpha"),
        (['data.partition="even"', "data.alpha=0.1"], "alpha is not used"),
        (['data.partition="local"', "data.alpha=0.1"], "alpha is not used"),
    ],
)
def test_data_are_cut_in_one_way(overrides: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse("", overrides)


def test_a_cut_is_of_nothing_where_data_are_local() -> None:
    from relayswarm.partitioning import partition
    from relayswarm.task import Site

    labels = torch.zeros(5, dtype=torch.int64).numpy()
    local = Site(shard=1, shards=3, min_samples=5, is_local=True)
    assert partition(labels, local).shards[1].tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(DataError, match=r"data\.min_samples = 6: at this site there are 5 samples"):
        partition(labels, Site(shard=1, shards=3, min_samples=6, is_local=True))
