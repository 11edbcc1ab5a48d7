"""`doctor`: what it finds, what it says to do, and how it ends."""

from __future__ import annotations

import json
import resource
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from coordinator.conductor import Conductor
from coordinator.service import CoordinatorServer
from coordinator.store import Store
from peer import cli, examination
from peer.examination import Check, Patient, Verdict, examine
from peer.newtask.command import write_task
from peer.transport.probe import CalledBack, Rate
from relayswarm import __version__
from relayswarm.config import load, parse
from relayswarm.errors import ConfigError, ExitCode


@pytest.fixture
def coordinator() -> Iterator[str]:
    """The address of one, on loopback."""
    with closing(Store(None)) as store:
        conductor = Conductor(parse("peers = 2"), store)
        server = CoordinatorServer(conductor, "127.0.0.1:0")
        server.start()
        conductor.start()
        yield server.address
        server.stop()


def relayswarm(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(list(arguments))
    return int(ended.value.code or 0)


def examined(coordinator: str, **more: Any) -> dict[str, Check]:
    return {check.name: check for check in examine(Patient(coordinator, **more))}


def test_all_is_well(coordinator: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    write_task(tmp_path / "mine")
    options = ("--coordinator", coordinator, "--state-dir", str(tmp_path / "not/yet"), "--json")
    assert relayswarm("doctor", str(tmp_path / "mine" / "run.toml"), *options) == 0
    checks = json.loads(capsys.readouterr().out)["checks"]
    verdicts = {check["name"]: check["verdict"] for check in checks}
    assert verdicts.pop("neighbours") == "unknown"  # nobody is there
    assert verdicts.pop("open files") in ("ok", "warning")
    names = ["versions", "device", "task", "disk", "coordinator", "release", "clock", "way back"]
    assert list(verdicts) == names
    assert set(verdicts.values()) == {"ok"}
    found = {check["name"]: check["found"] for check in checks}
    assert "mine: " in found["task"]
    assert "run run, waiting, 0 members" in found["coordinator"]
    assert not (tmp_path / "not").exists()


def test_no_coordinator_ends_with_3(capsys: pytest.CaptureFixture[str]) -> None:
    assert relayswarm("doctor", "--coordinator", "127.0.0.1:1") == ExitCode.COULD_NOT_JOIN
    told = capsys.readouterr().out
    assert "failed   coordinator: the coordinator at 127.0.0.1:1: unavailable" in told
    assert "-> check the address, that the coordinator runs, and that no firewall" in told


def test_a_failure_ends_with_1(
    coordinator: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: _Disk(1000))
    assert relayswarm("doctor", "--coordinator", coordinator) == 1
    assert "failed   disk: 1.0 kB free for" in capsys.readouterr().out


class _Disk:
    def __init__(self, free: int) -> None:
        self.free = free


@pytest.mark.parametrize(
    "option", [{"coordinator": "nowhere"}, {"listen": "nowhere"}, {"advertise": "nowhere"}]
)
def test_what_is_no_address_is_refused(option: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="not of the form HOST:PORT"):
        list(examine(Patient(**{"coordinator": "127.0.0.1:1", **option})))


def test_an_address_that_leads_nowhere(coordinator: str) -> None:
    check = examined(coordinator, advertise="127.0.0.1:1")["way back"]
    assert (check.verdict, check.found) == (Verdict.FAILED, "127.0.0.1:1: nobody answers there")
    assert check.remedy == "listen for others, too: --listen 0.0.0.0:PORT --advertise HOST:PORT"


def test_an_address_that_cannot_be_tried_is_no_failure(coordinator: str) -> None:
    check = examined(coordinator, advertise="192.0.2.7:50051")["way back"]
    assert check.verdict is Verdict.UNKNOWN
    assert "192.0.2.7 is not where this call comes from, 127.0.0.1" in check.found


def test_a_port_that_is_taken_is_told(coordinator: str) -> None:
    with pytest.raises(ConfigError, match="taken by another process"):
        examined(coordinator, listen=coordinator)


def test_a_task_that_is_wrong(coordinator: str, tmp_path: Path) -> None:
    write_task(tmp_path / "mine")
    file = tmp_path / "mine" / "task.py"
    file.write_text(file.read_text().replace("nn.Linear(30,", "nn.Linear(31,"))
    check = examined(coordinator, config=load(tmp_path / "mine" / "run.toml"))["task"]
    assert check.verdict is Verdict.FAILED
    assert check.found.startswith(f"{file}:")
    assert "relayswarm check" in check.remedy


def test_a_device_that_is_not_there() -> None:
    check = examination.check_device("cuda:9")
    assert check.verdict is Verdict.FAILED
    assert "--device cpu" in check.remedy


def test_few_open_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 4096))
    check = examination.check_files()
    assert (check.verdict, check.remedy) == (Verdict.WARNING, "raise it: ulimit -n 1024")


def test_packages_that_are_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        examination, "requires", lambda _: ["torch>=99.1", "ray>=1; extra == 'ray'"]
    )
    check = examination.check_versions()
    assert check.verdict is Verdict.FAILED
    assert check.found.startswith("torch ")
    assert check.found.endswith(" is older than 99.1")


@pytest.mark.parametrize(
    ("theirs", "verdict"),
    [(__version__, Verdict.OK), ("99.0.0", Verdict.FAILED), ("", Verdict.FAILED)],
)
def test_releases(theirs: str, verdict: Verdict) -> None:
    assert examination.check_release(theirs).verdict is verdict


@pytest.mark.parametrize(
    ("ahead_s", "round_trip_s", "verdict"),
    [
        (0.5, 0.01, Verdict.OK),
        (-9.0, 0.01, Verdict.WARNING),
        (9.0, 0.01, Verdict.WARNING),
        (3.0, 4.0, Verdict.OK),  # it may be the way
    ],
)
def test_clocks(ahead_s: float, round_trip_s: float, verdict: Verdict) -> None:
    answer = CalledBack(True, False, "", "127.0.0.1", ahead_s, round_trip_s, __version__)
    assert examination.check_clock(answer).verdict is verdict


@pytest.mark.parametrize(
    ("rate", "verdict", "found"),
    [
        (Rate(12e6), Verdict.OK, "12.0 MB/s from there"),
        (Rate(2e5), Verdict.WARNING, "200.0 kB/s from there"),
        (
            Rate(2e5, at_least=True),
            Verdict.OK,
            "at least 200.0 kB/s from there: its model is too small to tell more",
        ),
        (Rate(0.0, why="nothing came in 5 s"), Verdict.WARNING, "nothing came in 5 s"),
        (Rate(None, why="it is too small"), Verdict.OK, "it is too small"),
    ],
)
def test_rates(rate: Rate, verdict: Verdict, found: str) -> None:
    check = examination.check_rate(rate, "peer-1: ")
    assert (check.verdict, check.found) == (verdict, f"peer-1: {found}")
    assert bool(check.remedy) == (verdict is Verdict.WARNING)
