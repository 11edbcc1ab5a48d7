"""A network that falls apart for some time, and the swarm with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.daemon.wires import Wires, free_port

DEADLINE_S, LEASE_S = 1.0, 3.0
CHAIN = (
    *("task.name=quadratics", "topology.graph=chain", "peers=4", "steps=450"),
    f"transport.deadline_s={DEADLINE_S}",
    f"coordinator.lease_s={LEASE_S}",
    "faults.delay_s=0.01",  # a step takes at least this long, so that there are steps to watch
)


@pytest.fixture
def wired(daemons: Callable[..., Any]) -> Iterator[Callable[..., tuple[Any, Wires]]]:
    """Starts a swarm whose peers reach each other and the coordinator through `Wires`."""
    opened: list[Wires] = []

    def start(*settings: str) -> tuple[Any, Wires]:
        swarm = daemons(*settings, start=False)
        wires = Wires(lambda: {p.pid: name for name, p in swarm.peers.items()})
        opened.append(wires)
        at = wires.port_for("coordinator")
        wires.lead("coordinator", int(swarm.address.rpartition(":")[2]))
        for k in range(swarm.config.peers):
            name, port = f"peer-{k}", free_port()
            wires.lead(name, port)
            flags = ("--listen", f"127.0.0.1:{port}")
            flags += ("--advertise", f"127.0.0.1:{wires.port_for(name)}")
            swarm.add(name, *flags, coordinator=f"127.0.0.1:{at}")
        return swarm, wires

    yield start
    for wires in opened:
        wires.close()


def test_both_sides_train_on_and_are_one_swarm_again(wired: Callable[..., Any]) -> None:
    """The coordinator is on one side: the other is let go, and joins again once it can."""
    swarm, wires = wired(*CHAIN)
    swarm.until_step(30)
    wires.part({"peer-2", "peer-3"})
    apart = max(process.step() for process in swarm.peers.values())
    small = swarm.coordinator.until("topology", lambda event: len(event["members"]) == 2)
    assert small["members"] == ["peer-0", "peer-1"]
    swarm.until_step(apart + 60)  # both sides
    wires.heal()
    whole = swarm.coordinator.until(
        "topology",
        lambda event: (
            event["epoch"]["number"] > small["epoch"]["number"] and len(event["members"]) == 4
        ),
    )
    finished = swarm.finish()
    for peer in swarm.peers:
        steps = swarm.steps(peer)
        last = steps[max(steps)]
        assert last["models_counted"] == last["swarm_size"] == 4
        after = [e for k, e in steps.items() if k > whole["effective_step"] + 20]
        assert sum(event["missed"] for event in after) == 0
    errors = [event["metrics"]["suboptimality"] for event in finished.values()]
    assert max(errors) < 0.01
    for peer in ("peer-2", "peer-3"):
        assert "joining again" in swarm.peers[peer].log
