from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from peer.localswarm import session
from peer.localswarm.session import SessionOptions
from relayswarm import config as run_config
from relayswarm.config import RunConfig
from relayswarm.errors import ConfigError, ExitCode, JoinError

QUADRATICS = run_config.parse(
    "run_id = 'two'\npeers = 2\nsteps = 2",
    ["task.name=quadratics", "task.options.dimension=2"],
)


def options(tmp_path: Path, **changes: Any) -> SessionOptions:
    return SessionOptions(tmp_path / "report", **({"device": "cpu", "as_json": True} | changes))


def heard(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    """What was on standard output: JSON lines and nothing else."""
    captured = capsys.readouterr()
    assert captured.err == ""
    return [json.loads(line) for line in captured.out.splitlines()]


def write_models(tmp_path: Path, scripts: Any) -> None:
    """Let the scripted peers leave models behind whose mean is (2, 4)."""
    for k in range(2):
        path = tmp_path / f"{k}.safetensors"
        save_file({"x": torch.tensor([1.0 + 2 * k, 4.0], dtype=torch.float64)}, path)
        scripts.peer_scripts[f"peer-{k}"] = f"step(0)\nstep(1)\nfinish({str(path)!r})"


def test_up_goes_from_config_to_report(
    scripts: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_models(tmp_path, scripts)
    assert session.up(QUADRATICS, options(tmp_path), scripts) == ExitCode.DONE
    events = heard(capsys)
    kinds = [event["event"] for event in events]
    assert kinds[-1] == "finished"
    assert sorted(set(kinds[:-1])) == ["coordinator_started", "peer_finished", "step", "topology"]
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert events[-1]["report"] == report
    assert [peer["id"] for peer in report["peers"]] == ["peer-0", "peer-1"]
    assert report["worst"] == {"loss": 0.25}
    assert report["baseline"]["batch_size"] == 64
    assert report["baseline_small_batch"] is None  # full gradients know no batch
    assert report["consensus_model"]["loss"] > 0
    mean = load_file(tmp_path / "report" / "model.safetensors")["x"]
    assert mean.tolist() == [2.0, 4.0]


def test_up_leaves_the_logs_and_the_config_that_the_coordinator_read(
    scripts: Any, tmp_path: Path
) -> None:
    scripts.any_peer += """
            print("a word", file=sys.stderr)
    """
    session.up(QUADRATICS, options(tmp_path, baseline=False), scripts)
    report = tmp_path / "report"
    assert run_config.load(report / "run.toml") == QUADRATICS
    logs = {path.name: path.read_text() for path in (report / "logs").iterdir()}
    assert logs == {"coordinator.log": "", "peer-0.log": "a word\n", "peer-1.log": "a word\n"}
    assert json.loads((report / "report.json").read_text())["baseline"] is None


def test_sigterm_ends_the_run_and_reports_on_those_who_had_finished(
    scripts: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scripts.peer_scripts["peer-0"] = "finish()"
    scripts.peer_scripts["peer-1"] = "step(0)\nwait_to_be_ended()"
    take = session._Run._take

    def take_and_be_told_to_end(run: Any, event: Any) -> None:
        take(run, event)
        if event and event["event"] == "peer_finished":
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(session._Run, "_take", take_and_be_told_to_end)
    before = signal.getsignal(signal.SIGTERM)
    assert session.up(QUADRATICS, options(tmp_path), scripts) == ExitCode.INTERRUPTED
    assert signal.getsignal(signal.SIGTERM) is before
    report = heard(capsys)[-1]["report"]
    assert [peer["id"] for peer in report["peers"]] == ["peer-0"]
    assert report["baseline"] is None
    manifest = json.loads((tmp_path / "report" / "manifest.json").read_text())
    assert [lost["id"] for lost in manifest["lost_peers"]] == ["peer-1"]


def test_ctrl_c_before_anybody_finished_leaves_no_report(scripts: Any, tmp_path: Path) -> None:
    scripts.peer_scripts["peer-0"] = "os.kill(os.getppid(), signal.SIGINT)\nwait_to_be_ended()"
    scripts.peer_scripts["peer-1"] = "wait_to_be_ended()"
    assert session.up(QUADRATICS, options(tmp_path), scripts) == ExitCode.INTERRUPTED
    assert not (tmp_path / "report" / "report.json").exists()


def test_a_run_that_cannot_begin_leaves_no_report(scripts: Any, tmp_path: Path) -> None:
    scripts.coordinator_script = "sys.exit(1)"
    with pytest.raises(JoinError, match="coordinator ended before the run began"):
        session.up(QUADRATICS, options(tmp_path), scripts)
    assert not (tmp_path / "report" / "report.json").exists()


def test_a_lost_peer_does_not_fail_the_run(
    scripts: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scripts.peer_scripts["peer-1"] = "step(0)\nprint('boom', file=sys.stderr)\nsys.exit(1)"
    assert session.up(QUADRATICS, options(tmp_path), scripts) == ExitCode.DONE
    exited = [event for event in heard(capsys) if event["event"] == "peer_exited"]
    assert [(event["peer"], event["stderr"]) for event in exited] == [("peer-1", ["boom"])]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["topology.graph=ringg"], "topology.graph = 'ringg': .*ring"),
        (["topology.graph=file"], "topology.file"),
        (["topology.graph=file", "topology.file=/nowhere"], "topology.file = '/nowhere'"),
        (["topology.graph=torus", "peers=7"], "peers = 7: a torus"),
        (["algorithm.name=relay"], "algorithm.name = 'relay': .*relaysgd"),
        (["algorithm.fallback=previous", "algorithm.momentum=0.5"], "algorithm.momentum"),
        (["task.name=digit", "task.options={}"], "task.name = 'digit': .*digits"),
        (["task.options.dimensions=3"], "task.options.dimensions"),
        (["optimizer.nesterov=true"], "optimizer.nesterov"),
    ],
)
def test_what_is_wrong_is_found_before_anything_is_written(
    overrides: list[str], message: str, scripts: Any, tmp_path: Path
) -> None:
    config = run_config.parse(QUADRATICS.to_toml(), overrides)
    with pytest.raises(ConfigError, match=message):
        session.up(config, options(tmp_path), scripts)
    assert not (tmp_path / "report").exists()


def test_an_unusable_device_is_found_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="device = 'tpu'"):
        session.up(QUADRATICS, options(tmp_path, device="tpu"))
    assert not (tmp_path / "report").exists()


def test_the_simulator_is_shown_and_reported_on_alike(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = ["peers=3", "steps=6", "data.alpha=1.0", "topology.graph=chain"]
    config: RunConfig = run_config.parse("run_id = 'sim'", overrides)
    assert session.simulate(config, options(tmp_path)) == ExitCode.DONE
    events = heard(capsys)
    assert sum(event["event"] == "step" for event in events) == 18
    report = events[-1]["report"]
    assert report["steps"] == 6
    assert set(report["worst"]) == {"accuracy"}
    assert report["baseline"]["batch_size"] == 96
    assert report["baseline_small_batch"]["batch_size"] == 32
    models = sorted(path.name for path in (tmp_path / "report" / "models").iterdir())
    assert models == [f"peer-{k}.safetensors" for k in range(3)]
