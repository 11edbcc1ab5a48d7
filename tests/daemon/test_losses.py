"""Messages that the fault plan loses: announced ones cost no time, silent ones a deadline."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from peer.faults import FaultPlan

CHAIN = ("task.name=quadratics", "topology.graph=chain", "peers=4")
INCOMING = {
    "peer-0": ["peer-1"],
    "peer-1": ["peer-0", "peer-2"],
    "peer-2": ["peer-1", "peer-3"],
    "peer-3": ["peer-2"],
}


def test_known_losses_are_those_of_the_plan_and_nobody_waits_for_them(
    daemons: Callable[..., Any],
) -> None:
    swarm = daemons(*CHAIN, "steps=200", "faults.drop=0.1", "transport.deadline_s=60")
    finished = swarm.finish()
    plan = FaultPlan(swarm.config.faults, swarm.config.seed)
    for peer, senders in INCOMING.items():
        lost = [
            sum(plan.drops(step, 0, 0, sender, peer) for sender in senders) for step in range(200)
        ]
        steps = swarm.steps(peer)
        assert [steps[k]["missed"] for k in range(200)] == lost
        assert max(event["wait_s"] for event in steps.values()) < 30
        assert finished[peer]["messages_missed"] == sum(lost)
    expected = sum(event["messages_expected"] for event in finished.values())
    missed = sum(event["messages_missed"] for event in finished.values())
    assert expected == 6 * 200
    assert abs(missed - 0.1 * expected) < 4 * math.sqrt(expected * 0.1 * 0.9)


def test_silent_losses_cost_deadlines_but_the_run_goes_on(daemons: Callable[..., Any]) -> None:
    swarm = daemons(
        *CHAIN, "steps=40", "faults.drop=0.1", "faults.loss=silent", "transport.deadline_s=0.2"
    )
    finished = swarm.finish()
    assert all(event["steps"] == 40 for event in finished.values())
    plan = FaultPlan(swarm.config.faults, swarm.config.seed)
    ends = [(sender, peer) for peer, senders in INCOMING.items() for sender in senders]
    last_lost = sum(plan.drops(step, 0, 0, *end) for step in range(40) for end in ends)
    missed = sum(event["messages_missed"] for event in finished.values())
    assert missed >= 0.5 * last_lost > 0
    waits = [e["wait_s"] for peer in INCOMING for e in swarm.steps(peer).values()]
    assert max(waits) >= 0.2
