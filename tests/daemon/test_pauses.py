"""A peer that hangs (SIGSTOP) and comes back (SIGCONT).

A failure costs at most three deadlines once, and never one a step; those who live lose nothing
among themselves; and the one that was away jumps ahead, or starts over as a newcomer.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from itertools import pairwise
from typing import Any

DEADLINE_S = 1.5
CHAIN = (
    "task.name=quadratics",
    "topology.graph=chain",
    "peers=4",
    f"transport.deadline_s={DEADLINE_S}",
    "faults.delay_s=0.01",  # a step takes at least this long, so that there are steps to watch
)


def longest_jump(swarm: Any, peer: str) -> int:
    """By how many steps it went ahead at once."""
    return max(b - a for a, b in pairwise(sorted(swarm.steps(peer))))


def test_a_pause_costs_three_deadlines_and_the_peer_jumps_ahead(
    daemons: Callable[..., Any],
) -> None:
    swarm = daemons(*CHAIN, "steps=300", "coordinator.lease_s=60")
    swarm.until_step(30)
    sleeper = swarm.peers["peer-3"]
    sleeper.send(signal.SIGSTOP)
    asleep = max(process.step() for process in swarm.peers.values()) + 10
    swarm.until_step(asleep + 100, "peer-3")
    sleeper.send(signal.SIGCONT)
    swarm.finish()
    slept = range(asleep, asleep + 100)
    for peer, is_neighbour in (("peer-0", False), ("peer-1", False), ("peer-2", True)):
        steps = swarm.steps(peer)
        assert [steps[k]["missed"] for k in slept] == [int(is_neighbour)] * len(slept)
        assert sum(event["wait_s"] >= DEADLINE_S for event in steps.values()) <= 3
        assert max(steps[k]["wait_s"] for k in slept) < DEADLINE_S
    assert longest_jump(swarm, "peer-3") >= 100
    assert all(swarm.steps(peer)[299]["models_counted"] == 4 for peer in swarm.peers)


def test_an_adapted_deadline_does_not_wait_long_for_who_hangs(
    daemons: Callable[..., Any],
) -> None:
    """Steps take hundredths of a second, and the patience that is allowed is a minute."""
    swarm = daemons(
        *CHAIN,
        *("steps=150", "coordinator.lease_s=60"),
        *("transport.deadline_s=60", "transport.adapt_deadline=true"),
    )
    swarm.until_step(30)
    sleeper = swarm.peers["peer-3"]
    sleeper.send(signal.SIGSTOP)
    swarm.until_step(140, "peer-3")
    sleeper.send(signal.SIGCONT)
    finished = swarm.finish()
    timed_out = [event["messages_timed_out"] for event in finished.values()]
    assert max(timed_out) >= 3  # the neighbour's
    waits = [
        e["wait_s"] for peer in ("peer-0", "peer-1", "peer-2") for e in swarm.steps(peer).values()
    ]
    assert 1.0 <= max(waits) < 30


def test_a_long_pause_ends_membership_and_the_peer_starts_over(
    daemons: Callable[..., Any],
) -> None:
    swarm = daemons(*CHAIN, "steps=500", "coordinator.lease_s=4")
    swarm.until_step(30)
    sleeper = swarm.peers["peer-2"]
    sleeper.send(signal.SIGSTOP)
    lost = swarm.coordinator.until("member_lost")
    assert (lost["peer"], lost["reason"]) == ("peer-2", "lease_expired")
    living = ("peer-0", "peer-1", "peer-3")
    for peer in living:
        first = swarm.peers[peer].until("step", lambda event: event["swarm_size"] == 3)
        swarm.peers[peer].until_step(first["step"] + 50)
    sleeper.send(signal.SIGCONT)
    back = swarm.coordinator.until("topology", lambda event: event["reason"] == "joined")
    assert back["members"] == ["peer-0", "peer-1", "peer-2", "peer-3"]
    swarm.finish()
    for peer in living:
        among_themselves = [e for e in swarm.steps(peer).values() if e["swarm_size"] == 3]
        # The new epoch may reach a peer a step or two late; after that nothing is lost.
        assert sum(event["missed"] for event in among_themselves) <= 4
    assert min(step for step in swarm.steps("peer-2") if step > 60) >= back["effective_step"]
    assert all(swarm.steps(peer)[499]["models_counted"] == 4 for peer in swarm.peers)
