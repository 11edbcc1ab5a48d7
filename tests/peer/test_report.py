from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from safetensors import safe_open
from safetensors.torch import load_file

from coordinator.views import lay_out
from peer.baseline import Baseline
from peer.outcome import Lost, PeerOutcome, RunOutcome, SwarmMetrics
from peer.plots import BASELINE_COLOUR, SWARM_COLOUR, rebuild
from peer.report import Comparison, prepare_directory, summarize, write_report
from peer.views import peer_ids, topology_event
from relayswarm import config as run_config
from relayswarm.errors import ConfigError, ExitCode

CONFIG = run_config.parse("run_id = 'made-up'\npeers = 3\nsteps = 4\n[data]\nalpha = 0.1")
BASELINE = Baseline(96, {"accuracy": 0.95, "loss": 0.2}, [(k, 2.0 - k / 4) for k in range(4)])
SMALL = Baseline(32, {"accuracy": 0.93, "loss": 0.3}, [])


def made_up_peer(number: int, accuracy: float | None, weight: float = 0.0) -> PeerOutcome:
    return PeerOutcome(
        id=f"peer-{number}",
        steps=4,
        local_steps=12,
        metrics={"accuracy": accuracy, "loss": 0.1 * number},
        messages_sent=8,
        messages_retried=1,
        messages_expected=8,
        messages_missed=number,
        messages_timed_out=2 * number,
        waited_s=0.25 * number,
        bytes_sent=1000,
        shard=number,
        shard_digest=f"digest {number}",
        notes=["drawn twice"] if number == 1 else [],
        losses=[(k, 2.0 - (k + number) / 4) for k in range(4)],
        evaluations=[(2, {"accuracy": 0.5}), (4, {"accuracy": accuracy})],
        swarm_metrics=swarm(4, peers=1 + number) if number else None,
        privacy={"epsilon": 2.5} if number == 2 else None,
        model={"layer.weight": torch.full((2, 2), weight), "seen": torch.tensor([number])},
    )


def swarm(step: int, peers: int) -> SwarmMetrics:
    one = {"weights": {"loss": 2.0 * peers}, "measured_by": {"loss": peers}}
    return {"step": step, "peers": peers, "metrics": {"loss": 0.5}, **one}


def made_up_run(peers: Sequence[PeerOutcome], **changes: Any) -> RunOutcome:
    topology = topology_event(lay_out(CONFIG, peer_ids(3)))
    values = {"config": CONFIG, "topologies": [topology, topology], "wall_seconds": 1.23456}
    return RunOutcome(peers=peers, **(values | changes))


PEERS = [made_up_peer(0, 0.9, 1.0), made_up_peer(1, 0.8, 2.0), made_up_peer(2, 0.97, 6.0)]


@pytest.fixture
def written(tmp_path: Path) -> Path:
    directory = tmp_path / "deep" / "report"
    prepare_directory(directory)
    comparison = Comparison({"accuracy": 0.96, "loss": 0.1}, BASELINE, SMALL)
    lost = [Lost("peer-3", -9, 2, ["last words"])]
    write_report(made_up_run(PEERS, lost=lost), directory, comparison, ["relayswarm", "up"])
    return directory


def test_report_json_says_exactly_this(written: Path) -> None:
    report = json.loads((written / "report.json").read_text())
    peers = [
        {
            "id": f"peer-{k}",
            "weight": 1.0,
            "steps": 4,
            "local_steps": 12,
            "metrics": {"accuracy": accuracy, "loss": 0.1 * k},
            "messages_sent": 8,
            "messages_retried": 1,
            "messages_expected": 8,
            "messages_missed": k,
            "messages_timed_out": 2 * k,
            "waited_seconds": 0.25 * k,
            "bytes_sent": 1000,
            "swarm_metrics": swarm(4, peers=1 + k) if k else None,
            "privacy": {"epsilon": 2.5} if k == 2 else None,
        }
        for k, accuracy in enumerate([0.9, 0.8, 0.97])
    ]
    assert report == {
        "schema_version": 1,
        "run_id": "made-up",
        "algorithm": "relaysgd",
        "swarm_size": 3,
        "steps": 4,
        "wall_seconds": 1.235,
        "topology_epochs": 2,
        "waited_seconds": 0.75,
        "peers": peers,
        "worst": {"accuracy": 0.8},
        "mean": {"accuracy": pytest.approx(0.89)},
        "weighted_mean": {"accuracy": pytest.approx(0.89)},
        "swarm_metrics": swarm(4, peers=3),
        "consensus_model": {"accuracy": 0.96},
        "baseline": {"accuracy": 0.95, "batch_size": 96},
        "baseline_small_batch": {"accuracy": 0.93, "batch_size": 32},
        "notes": [],
    }


def test_a_task_without_accuracy_is_summed_up_by_its_own_metrics() -> None:
    values = [(0.1, 1e-3), (0.3, 1e-5)]
    peers = [
        PeerOutcome(f"peer-{k}", 4, {"loss": loss, "suboptimality": gap})
        for k, (loss, gap) in enumerate(values)
    ]
    baseline = Baseline(64, {"loss": 0.05, "suboptimality": 0.0}, [])
    report = summarize(made_up_run(peers), Comparison(baseline=baseline))
    assert report["worst"] == {"loss": 0.3, "suboptimality": 1e-3}
    assert report["mean"] == {"loss": 0.2, "suboptimality": pytest.approx(5.05e-4)}
    assert report["consensus_model"] is None
    assert report["baseline"] == {"loss": 0.05, "suboptimality": 0.0, "batch_size": 64}
    assert report["baseline_small_batch"] is None


def test_what_was_not_finite_is_null_and_the_worst() -> None:
    peers = [made_up_peer(0, 0.9), made_up_peer(1, None)]
    report = summarize(made_up_run(peers), Comparison())
    assert report["worst"] == {"accuracy": None}
    assert report["mean"] == {"accuracy": None}


def test_a_run_that_nobody_finished_has_an_empty_report(tmp_path: Path) -> None:
    prepare_directory(tmp_path)
    report = write_report(made_up_run([], topologies=[]), tmp_path, Comparison())
    assert report["peers"] == []
    assert report["worst"] == {}
    assert not (tmp_path / "model.safetensors").exists()
    assert not (tmp_path / "tree.png").exists()


def test_models_are_written_for_each_peer_and_their_mean_by_name(written: Path) -> None:
    weights = [
        load_file(written / "models" / f"peer-{k}.safetensors")["layer.weight"][0, 0].item()
        for k in range(3)
    ]
    assert weights == [1.0, 2.0, 6.0]
    mean = load_file(written / "model.safetensors")
    assert mean["layer.weight"].tolist() == [[3.0, 3.0], [3.0, 3.0]]
    assert mean["seen"].tolist() == [0]
    with safe_open(written / "models" / "peer-1.safetensors", "pt") as file:
        assert file.metadata()["model"] == "peer-1"


def test_the_manifest_tells_what_the_run_was_made_of(written: Path) -> None:
    manifest = json.loads((written / "manifest.json").read_text())
    assert run_config.validate(manifest["config"]) == CONFIG
    assert manifest["command"] == ["relayswarm", "up"]
    assert manifest["seed"] == 0
    assert manifest["versions"]["torch"] == torch.__version__
    assert set(manifest["versions"]) >= {"python", "relayswarm", "grpcio"}
    assert manifest["hardware"]["cores"] >= 1
    assert manifest["hardware"]["memory_bytes"] > 2**20
    assert manifest["hardware"]["cpu"]
    assert manifest["shards"][2] == {"peer": "peer-2", "shard": 2, "digest": "digest 2"}
    assert manifest["notes"] == {"peer-1": ["drawn twice"]}
    assert manifest["lost_peers"] == [
        {"id": "peer-3", "exit_code": -9, "last_step": 2, "last_words": ["last words"]}
    ]
    assert [t["reason"] for t in manifest["topologies"]] == ["quorum", "quorum"]


def pixels_of(path: Path, colour: str) -> int:
    """Pixels of a PNG that have this colour, nearly."""
    image = matplotlib.image.imread(path)[:, :, :3]
    return int((np.abs(image - to_rgb(colour)).max(axis=2) < 0.02).sum())


def test_curves_show_the_swarm_and_the_baseline(written: Path, tmp_path: Path) -> None:
    assert pixels_of(written / "curves.png", SWARM_COLOUR) > 500
    assert pixels_of(written / "curves.png", BASELINE_COLOUR) > 100
    prepare_directory(tmp_path / "alone")
    write_report(made_up_run(PEERS), tmp_path / "alone", Comparison())
    assert pixels_of(tmp_path / "alone" / "curves.png", BASELINE_COLOUR) == 0


def test_losses_that_are_negative_or_missing_can_be_drawn(tmp_path: Path) -> None:
    prepare_directory(tmp_path)
    odd = [
        PeerOutcome("peer-0", 2, {"loss": None}, losses=[(0, -1.0), (1, None)]),
        PeerOutcome("peer-1", 2, {"loss": 1.0}, losses=[]),
        PeerOutcome("peer-2", 2, {"loss": 1.0}, losses=[(3, 1.0), (2, 2.0)]),
    ]
    write_report(made_up_run(odd), tmp_path, Comparison())
    assert (tmp_path / "curves.png").stat().st_size > 1000


@pytest.mark.parametrize("tree", ["spanning-tree", "double-binary-trees"])
def test_a_topology_is_rebuilt_from_its_event(tree: str) -> None:
    config = run_config.parse(
        "peers = 7", [f"topology.tree={tree}", "topology.graph=double-binary-trees"]
    )
    layout = lay_out(config, peer_ids(7))
    assert rebuild(topology_event(layout)) == layout.topology


def test_nothing_of_an_earlier_report_stays(written: Path) -> None:
    (written / "mine.txt").write_text("not the report's")
    prepare_directory(written)
    left = sorted(path.name for path in written.iterdir())
    assert left == ["mine.txt", "models"]
    assert list((written / "models").iterdir()) == []


def test_a_folder_that_cannot_be_made_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"--report = .*file/report.*; choose") as refused:
        prepare_directory(tmp_path / "file" / "report")
    assert refused.value.exit_code == ExitCode.USAGE
