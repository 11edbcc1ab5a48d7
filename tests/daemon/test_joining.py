"""Who may come, when, and what those are told who may not."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

QUADRATICS = ("task.name=quadratics", "topology.graph=chain", "steps=20")


def test_a_late_joiner_takes_over_a_members_model(daemons: Callable[..., Any]) -> None:
    swarm = daemons(
        *("task.name=digits", "data.batch_size=8", "data.shards=4"),
        *("topology.graph=chain", "steps=120", "faults.delay_s=0.02"),
        peers=3,
    )
    swarm.until_step(25)
    late = swarm.add("peer-3")
    joined = swarm.coordinator.until("topology", lambda event: event["reason"] == "joined")
    assert joined["members"] == ["peer-0", "peer-1", "peer-2", "peer-3"]
    finished = swarm.finish()
    start = re.search(r"starting from step (\d+) of peer-", late.log)
    assert start
    assert int(start[1]) > 20
    assert min(swarm.steps("peer-3")) >= joined["effective_step"]
    accuracies = [event["metrics"]["accuracy"] for event in finished.values()]
    assert min(accuracies) > 0.8
    assert max(accuracies) - min(accuracies) < 0.05
    assert finished["peer-3"]["shard"] == 3
    assert all(swarm.steps(peer)[119]["models_counted"] == 4 for peer in swarm.peers)


def test_more_peers_than_shards_share_them(daemons: Callable[..., Any]) -> None:
    swarm = daemons(*QUADRATICS, "data.shards=2", peers=3)
    finished = swarm.finish()
    shards = [event["shard"] for event in finished.values()]
    assert len(shards) == 3
    assert set(shards) == {0, 1}  # which of them is shared depends on who came last


def test_another_model_is_refused(
    daemons: Callable[..., Any], install: Callable[[int], Path]
) -> None:
    """As when a task's package is newer on one machine than on the others."""
    swarm = daemons("task.name=theirs", "topology.graph=chain", peers=2, start=False)
    allowed = ("--allow-task", "theirs")
    swarm.add("peer-0", *allowed, path=[install(20)]).until("waiting")
    other = swarm.add("peer-1", *allowed, path=[install(30)])
    assert other.exit_code() == 3
    line = other.log.splitlines()[-1]
    assert re.search(r"refused: model_fingerprint = 0x\w{16}: the run's is 0x\w{16}", line)
    assert line.endswith("use the same task, options and code on all peers")
    assert swarm.coordinator.until("join_refused")["reason"] == "fingerprint"


def test_a_coordinator_cannot_have_a_package_imported(
    daemons: Callable[..., Any], install: Callable[[int], Path]
) -> None:
    """Only what is built in, and what this peer's operator has named."""
    swarm = daemons("task.name=theirs", "topology.graph=chain", peers=1, start=False)
    folder = install(20)
    traced = folder / "theirs.py"
    traced.write_text(f"open({str(folder / 'imported')!r}, 'w').close()\n{traced.read_text()}")
    refused = swarm.add("peer-0", path=[folder])
    assert refused.exit_code() == 2
    (line,) = refused.log.splitlines()
    assert line == (
        "error: task.name = 'theirs': this task is a package's, and has not been allowed here; "
        "if you trust that package, start this peer with --allow-task theirs"
    )
    assert not (folder / "imported").exists()
    swarm.add("peer-0", "--allow-task", "theirs", path=[folder]).until("peer_started")
    assert (folder / "imported").exists()


def test_an_id_that_is_taken_later_ends_the_earlier_peer(daemons: Callable[..., Any]) -> None:
    """A later life of a peer takes its place; the earlier one must not come back."""
    swarm = daemons(*QUADRATICS, peers=2, start=False)
    earlier = swarm.add("peer-0")
    earlier.until("waiting")
    swarm.add("peer-0").until("waiting")
    assert earlier.exit_code() == 3
    assert "peer_id = 'peer-0': taken by a peer at 127.0.0.1:" in earlier.log


def test_a_coordinator_that_is_not_there_is_awaited_for_a_while(
    daemons: Callable[..., Any],
) -> None:
    swarm = daemons(*QUADRATICS, peers=2, start=False)
    with socket.socket() as taken:  # bound but not listened on: nobody answers
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        lonely = swarm.add("peer-0", "--patience", "1", coordinator=address)
        assert lonely.exit_code() == 3
    last = lonely.log.splitlines()[-1]
    assert last.startswith(
        f"error: --coordinator = '{address}': no coordinator answered within 1 s"
    )


@pytest.mark.parametrize("flag", ["--listen", "--metrics-listen"])
def test_a_port_that_is_taken_is_an_error(daemons: Callable[..., Any], flag: str) -> None:
    swarm = daemons(*QUADRATICS, peers=2, start=False)
    peer = swarm.add("peer-0", flag, swarm.address)
    assert peer.exit_code() == 2
    line = peer.log.splitlines()[-1]  # gRPC may complain too
    assert line.startswith("error: ")
    assert swarm.address in line
    assert re.search(r"cannot be listened on.*; choose .*0 ", line)


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ("task.name=digit", "task.name = 'digit': unknown task; did you mean 'digits'?"),
        ("algorithm.name=relay", "algorithm.name = 'relay': unknown algorithm; did you mean"),
        ("algorithm.blocking=true", "algorithm.blocking = True: relaysgd has no such option"),
        ("task.options.dimensions=3", "task.options.dimensions = 3: unknown"),
    ],
)
def test_a_run_that_a_peer_cannot_train_is_an_error(
    daemons: Callable[..., Any], setting: str, complaint: str
) -> None:
    swarm = daemons("task.name=quadratics", setting, peers=2, start=False)
    peer = swarm.add("peer-0")
    assert peer.exit_code() == 2
    (line,) = peer.log.splitlines()
    assert line.startswith(f"error: {complaint}")
