"""The coordinator as a process: what it prints, how it ends, what it weighs."""

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest
import typer
from typer.testing import CliRunner

from coordinator.cli import coordinator, status
from relayswarm.coordinator.v1 import coordinator_pb2 as pb
from relayswarm.coordinator.v1 import coordinator_pb2_grpc as pb_grpc
from relayswarm.peer.v1.peer_pb2 import SwarmMetric, SwarmMetrics

PATIENCE_S = 30.0
RUN = "import typer; from coordinator.cli import coordinator; typer.run(coordinator)"
ANY_PORT = ("--listen", "127.0.0.1:0")
AS_TEXT = ("--log-format", "text")


class Process:
    """A coordinator process that writes JSON."""

    def __init__(self, *options: str) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, "-c", RUN, "--json", *ANY_PORT, *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def event(self, name: str) -> dict[str, Any]:
        """The next event of this name. The test's time limit bounds the wait."""
        assert self.popen.stdout
        for line in self.popen.stdout:
            event = json.loads(line)
            if event["event"] == name:
                return event
        raise AssertionError(f"ended without {name}: {self.popen.communicate()}")

    def end(self, number: int | None = None) -> tuple[int, str]:
        """Exit code and log, after a signal if one is given."""
        if number is not None:
            self.popen.send_signal(number)
        _, log = self.popen.communicate(timeout=PATIENCE_S)
        return self.popen.returncode, log


@pytest.fixture
def launch() -> Iterator[Callable[..., Process]]:
    with ExitStack() as stack:

        def started(*options: str) -> Process:
            process = Process(*options)
            stack.enter_context(process.popen)
            stack.callback(process.popen.kill)
            return process

        yield started


def join(address: str, peer: str, step: int = 0) -> None:
    with grpc.insecure_channel(address) as channel:
        request = pb.JoinRequest(
            min_protocol_version=1,
            max_protocol_version=1,
            peer_id=peer,
            advertised_address=f"{peer}:1",
            model_fingerprint=1,
            incarnation=1,
            step=step,
        )
        pb_grpc.CoordinatorServiceStub(channel).Join(request, timeout=PATIENCE_S)


def leave(address: str, peer: str) -> None:
    with grpc.insecure_channel(address) as channel:
        request = pb.LeaveRequest(run_id="run", peer_id=peer, incarnation=1, finished=True)
        pb_grpc.CoordinatorServiceStub(channel).Leave(request, timeout=PATIENCE_S)


def app(command: Callable[..., None]) -> typer.Typer:
    made = typer.Typer()
    made.command()(command)
    return made


# --- a process -----------------------------------------------------------------------------------


def test_from_start_to_stop(launch: Any) -> None:
    process = launch("--set", "peers=2", "--set", "topology.graph=chain")
    started = process.event("coordinator_started")
    assert started["pid"] == process.popen.pid
    assert re.fullmatch(r"127\.0\.0\.1:\d+", started["address"])
    assert process.event("waiting")["needed"] == 2
    join(started["address"], "peer-0")
    waiting = process.event("waiting")
    assert (waiting["present"], waiting["members"]) == (1, ["peer-0"])
    join(started["address"], "peer-1")
    topology = process.event("topology")
    assert (topology["edges"], topology["reason"]) == ([["peer-0", "peer-1"]], "quorum")
    code, log = process.end(signal.SIGTERM)
    assert code == 0
    assert f"relayswarm peer --coordinator {started['address']}" in log
    assert "Traceback" not in log


def test_ctrl_c_is_an_interruption(launch: Any) -> None:
    process = launch()
    process.event("coordinator_started")
    code, log = process.end(signal.SIGINT)
    assert code == 130
    assert "Traceback" not in log


def test_a_signal_that_comes_before_it_serves_is_not_lost() -> None:
    check = """
import signal
from coordinator import runner
door = runner.door
def slow_door(*args, **more):
    signal.raise_signal(signal.SIGINT)
    return door(*args, **more)
runner.door = slow_door
print(int(runner.serve(runner.Options(listen="127.0.0.1:0"))))
"""
    done = subprocess.run(
        [sys.executable, "-c", check], capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.stdout.splitlines() == ["130"], done.stderr


def test_it_is_light_and_soon_there(launch: Any) -> None:
    """Serving in about a second, below 100 MB. Counted as work, for the machine may be busy."""
    process = launch()
    process.event("waiting")
    measured = psutil.Process(process.popen.pid)
    work = measured.cpu_times()
    assert work.user + work.system < 2.5
    assert measured.memory_info().rss < 100e6
    process.end(signal.SIGTERM)


def test_neither_torch_nor_numpy_is_in_the_process() -> None:
    check = """
import sys, threading
from coordinator.runner import Options, serve
from coordinator.conductor import Conductor
start = Conductor.start
def begin(conductor):
    start(conductor)
    conductor.ended.set()
Conductor.start = begin
serve(Options(listen="127.0.0.1:0", reflection=True, json=True, exit_when_finished=True))
print([name for name in ("torch", "numpy", "scipy", "pandas", "matplotlib", "peer")
       if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_peers_that_do_not_come_end_it(launch: Any) -> None:
    settings = ("--set", "peers=3", "--set", "coordinator.start_timeout_s=0.1")
    process = launch(*settings)
    assert process.event("gave_up") == {"event": "gave_up", "present": 0, "needed": 3}
    code, log = process.end()
    assert code == 4
    assert "error: waiting for 3 of 3 peers, and gave up" in log


def test_it_ends_with_its_run_if_wanted(launch: Any) -> None:
    process = launch("--set", "peers=1", "--exit-when-finished")
    address = process.event("coordinator_started")["address"]
    join(address, "peer-0")
    process.event("topology")
    leave(address, "peer-0")
    process.event("finished")
    assert process.end()[0] == 0


def test_it_outlives_its_run_otherwise(launch: Any) -> None:
    process = launch("--set", "peers=1")
    address = process.event("coordinator_started")["address"]
    join(address, "peer-0")
    process.event("topology")
    leave(address, "peer-0")
    process.event("finished")
    answer = CliRunner().invoke(app(status), ["--coordinator", address, "--json"])
    assert json.loads(answer.stdout)["state"] == "finished"
    assert process.end(signal.SIGTERM)[0] == 0


def test_a_store_brings_the_run_back_without_its_config(
    launch: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = str(tmp_path / "run.sqlite")
    first = launch("--store", store, "--set", "peers=1", "--set", "run_id=mine")
    join(first.event("coordinator_started")["address"], "peer-0")
    epoch = first.event("topology")["epoch"]
    assert first.end(signal.SIGKILL)[0] == -signal.SIGKILL
    second = launch("--store", store)
    started = second.event("coordinator_started")
    assert started["run_id"] == "mine"
    join(started["address"], "peer-0", step=3)
    again = second.event("topology")
    assert again["epoch"] == {"term": epoch["term"], "number": epoch["number"] + 1}
    assert again["effective_step"] == 3
    second.end(signal.SIGTERM)
    monkeypatch.setenv("RELAYSWARM_STEPS", "many")
    wrong = CliRunner().invoke(app(coordinator), [*ANY_PORT, *AS_TEXT, "--store", store])
    assert wrong.stderr.startswith("error: RELAYSWARM_STEPS: steps = 'many': ")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--config", "/nowhere.toml"), "run config = '/nowhere.toml': cannot be read"),
        (("--set", "peers=none"), "peers = 'none'"),
        (("--set", "topology.graph=rign"), "topology.graph = 'rign': unknown graph; did you mean"),
        (("--set", "topology.graph=file"), "topology.file = None: no file given"),
        (
            ("--set", "topology.graph=file", "--set", "topology.file=/nowhere.txt"),
            "topology.file = '/nowhere.txt'",
        ),
        (("--store", "/nowhere/store"), "store = '/nowhere/store'"),
        (("--listen", "nonsense"), "--listen = 'nonsense': not of the form HOST:PORT"),
        (
            ("--metrics-listen", "nonsense"),
            "--metrics-listen = 'nonsense': not of the form HOST:PORT",
        ),
    ],
)
def test_what_cannot_work_is_said_in_one_line(options: tuple[str, ...], words: str) -> None:
    result = CliRunner().invoke(app(coordinator), [*ANY_PORT, *AS_TEXT, *options])
    assert result.exit_code == 2
    (line,) = result.output.splitlines()
    assert line.startswith("error: ")
    assert words in line


def test_a_port_that_is_taken_is_said_in_one_line(serve: Callable[..., Any]) -> None:
    address = serve().server.address
    result = CliRunner().invoke(app(coordinator), ["--listen", address, *AS_TEXT])
    assert result.exit_code == 2
    assert result.output.startswith(f"error: --listen = '{address}': cannot be listened on: taken")


def test_grpc_adds_nothing_to_what_is_said_of_a_port(serve: Callable[..., Any]) -> None:
    command = [sys.executable, "-m", "peer.cli", "coordinator", "--listen", serve().server.address]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert line.startswith("error: --listen = ")


# --- status --------------------------------------------------------------------------------------


@pytest.fixture
def address(serve: Callable[..., Any]) -> str:
    """A run with a member that trains, one whose loss is no number, and one that has finished."""
    running = serve("peers = 3\n[topology]\ngraph = 'chain'")
    for k in range(3):
        running.join(f"peer-{k}", metrics_address=f"127.0.0.1:{k + 1}")
    running.view(running.watch("peer-0"))
    older, newer = swarm_metrics(5, 3), swarm_metrics(10, 2)
    given = {"loss": 0.5, "state": "training", "models_counted": 3, "swarm_metrics": newer}
    given["steps_per_s"] = 12.5
    measured = [pb.EvaluatedMetric(name="loss", value=0.75, weight=20)]
    given["evaluation"] = pb.Evaluation(step=10, metrics=measured)
    running.renew("peer-0", step=12, **given)
    nan = float("nan")
    running.renew("peer-1", step=11, loss=nan, state="averaging", swarm_metrics=older)
    running.leave("peer-2", finished=True)
    return running.server.address


def swarm_metrics(step: int, peers: int) -> SwarmMetrics:
    metrics = [
        SwarmMetric(name="loss", mean=0.25, weight=20 * peers, peers=peers),
        SwarmMetric(name="[bold]", mean=float("nan"), peers=1),
    ]
    return SwarmMetrics(step=step, peers=peers, metrics=metrics)


def test_status_as_json(address: str) -> None:
    result = CliRunner().invoke(app(status), ["--coordinator", address, "--json"])
    assert result.exit_code == 0
    shown = json.loads(result.stdout)
    assert (shown["run_id"], shown["state"], shown["needed"]) == ("run", "running", 3)
    assert (shown["epoch"]["number"], shown["reason"]) == (1, "quorum")
    assert shown["trees"] == [[["peer-0", "peer-1"], ["peer-1", "peer-2"]]]
    first, second, third = shown["members"]
    assert (first["peer"], first["step"], first["loss"], first["shard"]) == ("peer-0", 12, 0.5, 0)
    assert (first["models_counted"], first["metrics_address"]) == (3, "127.0.0.1:1")
    assert first["steps_per_s"] == 12.5
    assert (second["loss"], second["state"]) == (None, "averaging")
    assert third["state"] == "finished"
    assert first["swarm_metrics"] == shown["swarm_metrics"]
    assert first["swarm_metrics"] == {
        "step": 10,
        "peers": 2,
        "metrics": {"loss": 0.25, "[bold]": None},
        "weights": {"loss": 40.0, "[bold]": 0.0},
        "measured_by": {"loss": 2, "[bold]": 1},
    }
    assert (second["swarm_metrics"]["step"], third["swarm_metrics"]) == (5, None)
    told = {"step": 10, "metrics": {"loss": 0.75}, "weights": {"loss": 20.0}}
    assert (first["evaluation"], second["evaluation"]) == (told, None)


def test_status_as_a_table(address: str) -> None:
    result = CliRunner().invoke(app(status), ["--coordinator", address], env={"COLUMNS": "120"})
    assert result.exit_code == 0
    assert "run run: running, 2 peers here, 3 needed to start" in result.stdout
    rows = [line.split() for line in result.stdout.splitlines()]
    assert ["peer-0", "0", "12", "12.5", "0.5", "3", "training"] in [row[:7] for row in rows]
    assert ["peer-1", "1", "11", "-", "-", "-", "averaging"] in [row[:7] for row in rows]
    assert any("└── peer-2" in line for line in result.stdout.splitlines())
    assert "swarm at step 10: loss 0.25, [bold] nan (mean of 2 peers)\n" in result.stdout


def test_status_of_a_run_that_waits(serve: Callable[..., Any]) -> None:
    result = CliRunner().invoke(app(status), ["--coordinator", serve("peers = 3").server.address])
    assert result.stdout == "run run: waiting, 0 peers here, 3 needed to start\n"


def test_status_without_a_coordinator(serve: Callable[..., Any]) -> None:
    running = serve()
    running.server.stop()
    result = CliRunner().invoke(app(status), ["--coordinator", running.server.address])
    assert result.exit_code == 3
    (line,) = result.output.splitlines()
    assert f"--coordinator = '{running.server.address}': no coordinator answers there" in line
