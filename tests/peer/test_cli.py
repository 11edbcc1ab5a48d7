from __future__ import annotations

import errno
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from peer import cli, commands
from peer.localswarm.process import environment, own_command
from relayswarm import __version__
from relayswarm.errors import ExitCode, QuorumError

EXAMPLE = Path(__file__).parents[2] / "examples" / "demo.toml"

Run = Callable[..., int]


# --- which commands there are -----------------------------------------------------------------


def test_help_names_every_command(relayswarm: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert relayswarm("--help") == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {name} " in shown for name in cli.COMMANDS)


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_has_help(
    command: str, relayswarm: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert relayswarm(command, "--help") == 0
    assert f"Usage: relayswarm {command} " in capsys.readouterr().out


def test_version(relayswarm: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert relayswarm("--version") == 0
    assert capsys.readouterr().out == f"relayswarm {__version__}\n"


def test_help_imports_nothing_heavy() -> None:
    script = """
import sys
from peer.cli import main
try:
    main(["--help"])
except SystemExit:
    heavy = ("torch", "numpy", "networkx", "grpc", "rich", "pydantic", "matplotlib")
    print("imported:", [name for name in heavy if name in sys.modules])
"""
    output = subprocess.check_output([sys.executable, "-c", script], env=without_lifeline())
    assert output.decode().splitlines()[-1] == "imported: []"


def without_lifeline() -> dict[str, str]:
    return {key: value for key, value in environment().items() if not key.endswith("LIFELINE")}


# --- how they end -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["up", "--algorithm", "relay-sgd"], "algorithm.name = 'relay-sgd'"),
        (["simulate", "--algorithm", "relay-sgd"], "algorithm.name = 'relay-sgd'"),
        (["up", "--alpha", "0"], "data.alpha = 0.0"),
        (["up", "--alpha", "nan"], "data.alpha"),
        (["up", "--peers", "0"], "peers = 0"),
        (["up", "--steps", "-1"], "steps = -1"),
        (["up", "--seed", "-1"], "seed = -1"),
        (["up", "--graph", "rings"], "topology.graph = 'rings'"),
        (["up", "--task", "digit"], "task.name = 'digit'"),
        (["up", "--set", "data.alpha"], "--set = 'data.alpha'"),
        (["up", "--set", "data.alhpa=1"], "data.alhpa = 1: unknown key; did you mean 'alpha'?"),
        (["up", "--set", "data.batch_size=many"], "data.batch_size = 'many'"),
        (["up", "no-such-file.toml"], "run config = 'no-such-file.toml'"),
        (["up", "broken.toml"], "broken.toml = "),
        (["up", "--peers", "2", "--report", "broken.toml/report"], "--report = "),
        (["up", "--device", "tpu"], "device = 'tpu'"),
        (["up", "--task", "fashion-mnist", "--data-dir", "nowhere"], "nowhere"),
        (["coordinator", "--config", "no-such-file.toml"], "run config = 'no-such-file.toml'"),
        (["status", "--coordinator", "nonsense"], "--coordinator = 'nonsense'"),
        (["peer", "--coordinator", "nonsense"], "nonsense"),
        (["peer", "--state-dir", "broken.toml/state"], "--state-dir = 'broken.toml/state'"),
        (["pull", "--peer", "nonsense", "--output", "x"], "--peer = 'nonsense'"),
    ],
)
def test_what_the_user_can_mend_is_one_line_and_exit_code_2(
    arguments: list[str],
    message: str,
    relayswarm: Run,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "broken.toml").write_text("peers = = 3")
    assert relayswarm(*arguments) == ExitCode.USAGE
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("error: ")
    assert message in line


@pytest.mark.parametrize(
    "arguments",
    [["nonsense"], ["up", "--nonsense"], ["up", "--peers", "three"], ["pull", "--output", "x"]],
)
def test_wrong_usage_points_to_the_help(
    arguments: list[str], relayswarm: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert relayswarm(*arguments) == ExitCode.USAGE
    assert "-h' for help" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (QuorumError("too few came"), ExitCode.LOST_QUORUM, "error: too few came\n"),
        (
            OSError(errno.EMFILE, "Too many open files", "x.txt"),
            ExitCode.USAGE,
            "error: file descriptors = 'none left': [Errno 24] Too many open files: 'x.txt'; raise "
            "the limit (ulimit -n), or end what holds them\n",
        ),
        (KeyboardInterrupt(), ExitCode.INTERRUPTED, ""),
        (typer.Exit(ExitCode.COULD_NOT_JOIN), ExitCode.COULD_NOT_JOIN, ""),
    ],
)
def test_each_end_has_its_exit_code(
    error: BaseException,
    code: ExitCode,
    said: str,
    relayswarm: Run,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fails() -> None:
        raise error

    monkeypatch.setattr(commands, "pull", fails)
    assert relayswarm("pull") == code
    assert capsys.readouterr().err == said


def test_our_own_bugs_show_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(commands, "pull", fails)
    with pytest.raises(ZeroDivisionError):
        cli.main(["pull"])


# --- what options mean ------------------------------------------------------------------------


def test_flags_go_before_set_and_set_before_the_file(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("peers = 5\nsteps = 50\nseed = 5\n[data]\nalpha = 0.5")
    overrides = ["steps=60", "seed=6", "topology.graph=ring"]
    config = commands.resolve(file, overrides, {"seed": 7, "alpha": None, "task": "quadratics"})
    assert (config.peers, config.steps, config.seed, config.data.alpha) == (5, 60, 7, 0.5)
    assert (config.topology.graph, config.task.name) == ("ring", "quadratics")
    assert config.algorithm.name == "relaysgd"


def test_the_example_is_a_valid_config() -> None:
    config = commands.resolve(EXAMPLE, [], {})
    assert (config.run_id, config.peers, config.task.name) == ("demo", 8, "digits")


# --- a whole swarm of real processes ----------------------------------------------------------


@pytest.mark.timeout(240)  # five processes import torch, perhaps on a busy machine
def test_up_runs_a_swarm_of_processes(tmp_path: Path) -> None:
    """Four peers, real sockets: JSON events on standard output, then the report."""
    report = tmp_path / "report"
    command = own_command("up", "--task", "quadratics", "--peers", "4", "--graph", "chain")
    command += ["--steps", "20", "--report", str(report), "--json", "--device", "cpu"]
    ended = subprocess.run(
        command, env=without_lifeline(), capture_output=True, text=True, check=False, timeout=220
    )
    assert (ended.returncode, ended.stderr) == (ExitCode.DONE, "")
    events = [json.loads(line) for line in ended.stdout.splitlines()]
    by_kind: dict[str, list[dict[str, Any]]] = {}
    for event in events:
        by_kind.setdefault(event["event"], []).append(event)

    peers = {f"peer-{k}" for k in range(4)}
    (coordinator,) = by_kind["coordinator_started"]
    assert set(coordinator) >= {"pid", "address", "metrics_address"}
    assert {event["peer"] for event in by_kind["peer_started"]} == peers
    assert all(
        set(event) >= {"pid", "address", "metrics_address"} for event in by_kind["peer_started"]
    )
    (topology,) = by_kind["topology"]
    assert topology["edges"] == [["peer-0", "peer-1"], ["peer-1", "peer-2"], ["peer-2", "peer-3"]]
    assert topology["reason"] == "quorum"
    steps = {(event["peer"], event["step"]) for event in by_kind["step"]}
    assert steps == {(peer, step) for peer in peers for step in range(20)}
    assert {event["models_counted"] for event in by_kind["step"] if event["step"] >= 3} == {4}
    assert {event["peer"] for event in by_kind["peer_finished"]} == peers
    assert events[-1]["event"] == "finished"

    content = json.loads((report / "report.json").read_text())
    assert events[-1]["report"] == content
    assert content["topology_epochs"] == 1
    assert [peer["messages_missed"] for peer in content["peers"]] == [0, 0, 0, 0]
    assert [peer["steps"] for peer in content["peers"]] == [20, 20, 20, 20]
    assert (report / "model.safetensors").exists()
    assert not (report / "state").exists()


def test_sigterm_ends_a_real_swarm(tmp_path: Path) -> None:
    command = own_command("up", "--task", "quadratics", "--peers", "1")
    command += ["--steps", "1000000", "--report", str(tmp_path / "report"), "--json"]
    pids: list[int] = []
    with subprocess.Popen(
        command, env=without_lifeline(), stdout=subprocess.PIPE, text=True
    ) as swarm:
        assert swarm.stdout
        for line in swarm.stdout:
            event = json.loads(line)
            if "pid" in event:
                pids.append(event["pid"])
            if event["event"] == "step" and event["step"] == 5:
                swarm.send_signal(signal.SIGTERM)
                break
        swarm.stdout.read()
        assert swarm.wait(60) == ExitCode.INTERRUPTED
    assert len(pids) == 2
    assert [pid for pid in pids if Path(f"/proc/{pid}").exists()] == []
