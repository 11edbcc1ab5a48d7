from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from peer.localswarm import swarm as swarm_module
from peer.localswarm.process import Ended
from peer.localswarm.swarm import LocalCommands, LocalSwarm, could_not_begin
from relayswarm.config import validate
from relayswarm.errors import ExitCode, JoinError, QuorumError

PEERS = ("peer-0", "peer-1")


@pytest.fixture
def swarm(scripts: Any, tmp_path: Path) -> Iterator[LocalSwarm]:
    logs = tmp_path / "logs"
    logs.mkdir()
    with LocalSwarm(scripts, PEERS, logs) as local:
        yield local


def events(swarm: LocalSwarm) -> list[Mapping[str, Any]]:
    """All events of a run, from its start to its end."""
    swarm.start()
    return [event for event in swarm.events() if event is not None]


def names(events: list[Mapping[str, Any]], peer: str) -> list[str]:
    return [event["event"] for event in events if event.get("peer") == peer]


def test_peers_start_when_the_coordinator_listens_and_all_are_heard(
    scripts: Any, swarm: LocalSwarm
) -> None:
    scripts.any_peer += """
            say("told", peer=me, coordinator=coordinator)
    """
    heard = events(swarm)
    assert [event["event"] for event in heard[:2]] == ["topology", "coordinator_started"]
    for peer in PEERS:
        assert names(heard, peer) == ["peer_started", "step", "step", "peer_finished", "told"]
    assert {event["coordinator"] for event in heard if event["event"] == "told"} == {"here:1"}


def test_the_coordinators_own_finish_is_not_the_runs(scripts: Any, swarm: LocalSwarm) -> None:
    scripts.coordinator_script = """
        say("coordinator_started", address="here:1")
        topology("peer-0", "peer-1")
        say("finished")
        wait_to_be_ended()
    """
    assert "finished" not in [event["event"] for event in events(swarm)]


def test_a_peer_that_ends_early_is_reported_and_the_others_go_on(
    scripts: Any, swarm: LocalSwarm
) -> None:
    scripts.peer_scripts["peer-1"] = """
        step(0)
        for line in range(9):
            print("line", line, file=sys.stderr)
        sys.exit(5)
    """
    heard = events(swarm)
    (exited,) = [event for event in heard if event["event"] == "peer_exited"]
    assert exited == {
        "event": "peer_exited",
        "peer": "peer-1",
        "exit_code": 5,
        "stderr": [f"line {k}" for k in range(4, 9)],
    }
    assert names(heard, "peer-0")[-1] == "peer_finished"


def test_a_peer_that_is_killed_is_reported_by_its_signal(scripts: Any, swarm: LocalSwarm) -> None:
    scripts.peer_scripts["peer-0"] = "os.kill(os.getpid(), signal.SIGKILL)"
    (exited,) = [event for event in events(swarm) if event["event"] == "peer_exited"]
    assert (exited["peer"], exited["exit_code"], exited["stderr"]) == ("peer-0", -9, [])


def test_peers_go_on_when_the_coordinator_dies(scripts: Any, swarm: LocalSwarm) -> None:
    scripts.coordinator_script = """
        topology("peer-0", "peer-1")
        say("coordinator_started", address="here:1")
        print("out of memory", file=sys.stderr)
        sys.exit(1)
    """
    heard = events(swarm)
    exited = {"event": "coordinator_exited", "exit_code": 1, "stderr": ["out of memory"]}
    assert exited in heard
    assert [e["peer"] for e in heard if e["event"] == "peer_finished"] != []


def test_a_coordinator_that_cannot_start_ends_the_run(scripts: Any, swarm: LocalSwarm) -> None:
    scripts.coordinator_script = 'print("error: no port", file=sys.stderr)\nsys.exit(2)'
    with pytest.raises(Exception, match=r"^coordinator ended .*exit code 2.*: error: no port$"):
        events(swarm)


def test_a_peer_that_cannot_start_ends_the_run(scripts: Any, swarm: LocalSwarm) -> None:
    scripts.coordinator_script = """
        say("coordinator_started", address="here:1")
        wait_to_be_ended()
    """
    scripts.any_peer = "wait_to_be_ended()"
    scripts.peer_scripts["peer-1"] = 'print("error: refused", file=sys.stderr)\nsys.exit(3)'
    with pytest.raises(JoinError, match=r"peer-1 ended before the run began .*refused"):
        events(swarm)


def test_a_run_that_nobody_finishes_has_lost_its_quorum(scripts: Any, swarm: LocalSwarm) -> None:
    scripts.any_peer = "step(0)\nsys.exit(4)"
    with pytest.raises(QuorumError, match="no peer finished"):
        events(swarm)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (ExitCode.USAGE, ExitCode.USAGE),
        (ExitCode.COULD_NOT_JOIN, ExitCode.COULD_NOT_JOIN),
        (ExitCode.LOST_QUORUM, ExitCode.LOST_QUORUM),
        (1, ExitCode.COULD_NOT_JOIN),
        (-9, ExitCode.COULD_NOT_JOIN),
        (0, ExitCode.COULD_NOT_JOIN),
    ],
)
def test_the_exit_code_of_a_run_that_could_not_begin(code: int, expected: ExitCode) -> None:
    error = could_not_begin(Ended("peer-0", code), [])
    assert error.exit_code == expected
    assert str(error).endswith(": without a word")


def test_last_words_are_heard_and_the_stubborn_killed(
    scripts: Any, swarm: LocalSwarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(swarm_module, "GRACE_S", 0.5)
    scripts.peer_scripts["peer-0"] = """
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        say("ready", peer=me)
        while True: signal.pause()
    """
    scripts.peer_scripts["peer-1"] = """
        def end(*_):
            say("state", peer=me, state="left")
            sys.exit(0)
        signal.signal(signal.SIGTERM, end)
        say("ready", peer=me)
        while True: signal.pause()
    """
    swarm.start()
    ready: set[str] = set()
    for event in swarm.events():
        if event is not None and event["event"] == "ready":
            ready.add(event["peer"])
        if len(ready) == 2:
            break
    swarm.stop()
    assert list(swarm.last_words()) == [{"event": "state", "peer": "peer-1", "state": "left"}]


def test_who_hangs_is_reported_but_not_who_finished_and_is_slow_to_end(
    scripts: Any, swarm: LocalSwarm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(swarm_module, "GRACE_S", 1.0)
    done = tmp_path / "done"
    os.mkfifo(done)
    scripts.coordinator_script = f"""
        topology("peer-0", "peer-1")
        say("coordinator_started", address="here:1")
        open({str(done)!r}).read()
        say("finished")
        wait_to_be_ended()
    """
    scripts.peer_scripts["peer-0"] = f"""
        finish()
        open({str(done)!r}, "w").close()
        wait_to_be_ended()
    """
    scripts.peer_scripts["peer-1"] = "step(0)\nwait_to_be_ended()"
    heard = events(swarm)
    assert names(heard, "peer-0") == ["peer_finished"]
    assert names(heard, "peer-1") == ["step", "peer_exited"]
    assert heard[-1]["exit_code"] is None


def test_a_quiet_time_is_told_too(scripts: Any, swarm: LocalSwarm) -> None:
    scripts.coordinator_script = "wait_to_be_ended()"
    swarm.start()
    assert next(swarm.events(idle_s=0.01)) is None


def test_the_real_commands_listen_on_loopback_with_free_ports(tmp_path: Path) -> None:
    commands = LocalCommands(tmp_path, "cpu", Path("data"), validate({"task": {"name": "theirs"}}))
    coordinator = " ".join(commands.coordinator())
    assert f"coordinator --config {tmp_path}/run.toml --listen 127.0.0.1:0" in coordinator
    peer = " ".join(commands.peer("peer-3", "127.0.0.1:99"))
    assert "peer --id peer-3 --coordinator 127.0.0.1:99" in peer
    assert "--device cpu --json --allow-task theirs --allow-algorithm relaysgd" in peer
    assert peer.endswith("--data-dir data")
    assert f"--state-dir {tmp_path}/state/peer-3" in peer
