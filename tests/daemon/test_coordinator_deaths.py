"""A coordinator that dies (SIGKILL), for a while or for good: no peer stops for that."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

LEASE_S = 4.0
CHAIN = (
    "task.name=quadratics",
    "topology.graph=chain",
    "faults.delay_s=0.02",  # a step takes at least this long, so that there are steps to watch
    "transport.deadline_s=60",
    f"coordinator.lease_s={LEASE_S}",
)


def kill(process: Any) -> None:
    process.send(signal.SIGKILL)
    assert process.exit_code() == -signal.SIGKILL


def furthest(swarm: Any) -> int:
    return max(process.step() for process in swarm.peers.values())


def test_peers_go_on_without_it_and_it_finds_them_when_it_is_back(
    daemons: Callable[..., Any], tmp_path: Path
) -> None:
    flags = ("--store", str(tmp_path / "store.db"))
    swarm = daemons(*CHAIN, "steps=450", peers=4, flags=flags)
    swarm.until_step(20)
    first = swarm.coordinator.until("topology")
    kill(swarm.coordinator)
    swarm.until_step(furthest(swarm) + 30)
    kill(swarm.peers.pop("peer-3"))
    died_at = furthest(swarm) + 10
    swarm.until_step(died_at + 50)  # its neighbour corrects by the counter
    again = swarm.restart_coordinator()
    restored = again.until("topology")
    assert (restored["reason"], restored["members"]) == ("restored", ["peer-0", "peer-1", "peer-2"])
    assert restored["epoch"]["term"] == first["epoch"]["term"]
    assert restored["epoch"]["number"] > first["epoch"]["number"]
    finished = swarm.finish()
    for peer, misses in (("peer-0", 0), ("peer-1", 0), ("peer-2", 1)):
        steps = swarm.steps(peer)
        assert [steps[k]["missed"] for k in range(died_at, died_at + 40)] == [misses] * 40
        assert finished[peer]["messages_timed_out"] == 0
        assert steps[449]["models_counted"] == steps[449]["swarm_size"] == 3
        log = swarm.peers[peer].log
        epochs = [tuple(map(int, e)) for e in re.findall(r"epoch (\d+)\.(\d+) from step", log)]
        assert len(epochs) >= 2
        assert epochs == sorted(set(epochs))  # they never go backwards
        assert "is away" in log
        assert "is back" in log or "joining again" in log


def test_the_run_comes_to_its_end_without_it(daemons: Callable[..., Any]) -> None:
    swarm = daemons(*CHAIN, "steps=60", peers=3)
    swarm.until_step(10)
    kill(swarm.coordinator)
    finished = swarm.finish()
    assert [event["steps"] for event in finished.values()] == [60, 60, 60]
    assert sum(event["messages_missed"] for event in finished.values()) == 0
