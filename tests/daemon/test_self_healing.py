"""Swarms that repair their tree without a coordinator: `topology.self_heal = true`."""

from __future__ import annotations

import signal
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import pytest

from coordinator.members import FIRST_HEALED_NUMBER
from tests.daemon.conftest import PATIENCE_S
from tests.daemon.wires import Wires, free_port

HEALING = (
    "task.name=quadratics",
    "steps=1000000",
    "topology.self_heal=true",
    "topology.hello_s=0.15",
    "topology.max_age_s=1.2",
    "faults.delay_s=0.02",  # a step takes at least this long, so that there are steps to watch
    f"transport.deadline_s={PATIENCE_S}",  # nobody shall wait for the dead, or the other side
    "coordinator.lease_s=4",
)


def kill(process: Any) -> None:
    process.send(signal.SIGKILL)
    assert process.exit_code() == -signal.SIGKILL


def committed(swarm: Any, peers: Collection[str]) -> Any:
    """The tree that exactly these peers, and all of them, have. On a busy machine, where a silence
    of `max_age_s` may be a pause, it need not be the first."""

    def latest() -> list[Any]:
        told = [swarm.peers[peer].events("tree_committed")[-1:] for peer in peers]
        return [event for events in told for event in events]

    def is_one() -> bool:
        ages, members = {*map(age, latest())}, [event["members"] for event in latest()]
        return len(ages) == 1 and members == [sorted(peers)] * len(peers)

    with swarm.news:
        assert swarm.news.wait_for(is_one, PATIENCE_S), f"{peers} have {latest()}"
    return latest()[0]


def age(event: Any) -> tuple[int, int]:
    return event["epoch"]["term"], event["epoch"]["number"]


def until_whole(swarm: Any, peers: Collection[str], after: int) -> None:
    """Wait until each of them has averaged the models of them all, in a step later than that; and
    nobody has waited in vain."""

    def is_whole(event: Any) -> bool:
        counts = (event["models_counted"], event["swarm_size"], event["missed"])
        return event["step"] > after and counts == (len(peers), len(peers), 0)

    for peer in peers:
        swarm.peers[peer].until("step", is_whole)
        longest = max(swarm.peers[peer].events("step"), key=lambda event: event["wait_s"])
        assert longest["wait_s"] < PATIENCE_S / 2, (longest, *map(str, swarm.peers.values()))


def test_the_survivors_commit_a_tree_and_relay_on(daemons: Callable[..., Any]) -> None:
    """Coordinator and the peer in the middle die: no link is left between the sides."""
    swarm = daemons(*HEALING, "topology.graph=chain", peers=5)
    swarm.until_step(20)
    first = swarm.coordinator.until("topology")
    kill(swarm.coordinator)
    kill(swarm.peers.pop("peer-2"))
    tree = committed(swarm, swarm.peers)
    assert tree["root"] == "peer-0"
    assert tree["epoch"]["term"] > first["epoch"]["term"]
    assert tree["epoch"]["number"] >= FIRST_HEALED_NUMBER
    until_whole(swarm, swarm.peers, tree["effective_step"] + 40)


def test_a_coordinator_that_returns_goes_on_with_the_tree(
    daemons: Callable[..., Any], tmp_path: Path
) -> None:
    flags = ("--store", str(tmp_path / "store.db"))
    swarm = daemons(*HEALING, "topology.graph=complete", peers=4, flags=flags)
    swarm.until_step(20)
    kill(swarm.coordinator)
    kill(swarm.peers.pop("peer-0"))
    tree = committed(swarm, swarm.peers)
    until_whole(swarm, swarm.peers, tree["effective_step"])
    back = swarm.restart_coordinator().until("topology")
    assert (back["reason"], back["members"]) == ("restored", ["peer-1", "peer-2", "peer-3"])
    tree = committed(swarm, swarm.peers)
    assert back["epoch"] == {"term": tree["epoch"]["term"] + 1, "number": 1}
    assert back["edges"] == tree["edges"]
    until_whole(swarm, swarm.peers, back["effective_step"] + 40)
    kill(swarm.peers.pop("peer-1"))  # and it leads again
    led = swarm.coordinator.until("topology", lambda event: len(event["members"]) == 2)
    assert led["epoch"]["term"] == back["epoch"]["term"]


@pytest.fixture
def wired(daemons: Callable[..., Any]) -> Iterator[Callable[..., tuple[Any, Wires]]]:
    """Starts a swarm whose peers reach each other through `Wires`."""
    opened: list[Wires] = []

    def start(*settings: str) -> tuple[Any, Wires]:
        swarm = daemons(*settings, start=False)
        wires = Wires(lambda: {p.pid: name for name, p in swarm.peers.items()})
        opened.append(wires)
        for k in range(swarm.config.peers):
            name, port = f"peer-{k}", free_port()
            wires.lead(name, port)
            flags = ("--listen", f"127.0.0.1:{port}")
            flags += ("--advertise", f"127.0.0.1:{wires.port_for(name)}")
            swarm.add(name, *flags)
        return swarm, wires

    yield start
    for wires in opened:
        wires.close()


def test_sides_of_a_partition_are_swarms_and_become_one_again(wired: Callable[..., Any]) -> None:
    swarm, wires = wired(*HEALING, "topology.graph=chain", "peers=4")
    swarm.until_step(20)
    first = swarm.coordinator.until("topology")
    kill(swarm.coordinator)
    left, right = ["peer-0", "peer-1"], ["peer-2", "peer-3"]
    wires.part(right)
    sides = [committed(swarm, side) for side in (left, right)]
    assert [side["root"] for side in sides] == ["peer-0", "peer-2"]
    assert all(side["epoch"]["term"] > first["epoch"]["term"] for side in sides)
    assert age(sides[0]) != age(sides[1])
    for side, tree in zip((left, right), sides, strict=True):
        until_whole(swarm, side, tree["effective_step"] + 40)
    sides = [committed(swarm, side) for side in (left, right)]
    before = max(process.step() for process in swarm.peers.values())
    wires.heal()
    whole = committed(swarm, [*left, *right])
    assert whole["root"] == "peer-0"
    assert whole["epoch"]["term"] > max(side["epoch"]["term"] for side in sides)
    assert before <= whole["step"] < whole["effective_step"]
    until_whole(swarm, [*left, *right], whole["effective_step"] + 40)
