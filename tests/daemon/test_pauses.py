"""A peer that hangs (SIGSTOP) and comes back (SIGCONT).

A failure costs at most three deadlines once, and never one a step; those who live lose nothing
among themselves; and the one that was away jumps ahead, or joins anew.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from itertools import pairwise
from typing import Any

CHAIN = ("task.name=quadratics", "topology.graph=chain", "peers=4", "steps=800")
DEADLINE_S = 1.5
LIVING = ("peer-0", "peer-1", "peer-3")


def test_a_pause_costs_three_deadlines_and_the_peer_jumps_ahead(
    daemons: Callable[..., Any],
) -> None:
    swarm = daemons(*CHAIN, f"transport.deadline_s={DEADLINE_S}", "coordinator.lease_s=60")
    swarm.until_step(50)
    sleeper = swarm.peers["peer-2"]
    sleeper.send(signal.SIGSTOP)
    asleep = max(process.step() for process in swarm.peers.values()) + 10
    swarm.until_step(asleep + 200, "peer-2")
    sleeper.send(signal.SIGCONT)
    swarm.finish()
    slept = range(asleep, asleep + 200)
    for peer, is_neighbour in (("peer-0", False), ("peer-1", True), ("peer-3", True)):
        steps = swarm.steps(peer)
        assert [steps[k]["missed"] for k in slept] == [int(is_neighbour)] * len(slept)
        waited_out = [k for k in steps if steps[k]["wait_s"] >= DEADLINE_S]
        assert len(waited_out) <= 3
        assert max(steps[k]["wait_s"] for k in slept) < DEADLINE_S
    own = sorted(swarm.steps("peer-2"))
    assert max(b - a for a, b in pairwise(own)) >= 200, "it was to jump ahead"
    assert all(swarm.steps(peer)[799]["models_counted"] == 4 for peer in swarm.peers)


def test_a_long_pause_ends_membership_and_the_peer_joins_anew(
    daemons: Callable[..., Any],
) -> None:
    swarm = daemons(*CHAIN, "transport.deadline_s=1", "coordinator.lease_s=4")
    swarm.until_step(50)
    sleeper = swarm.peers["peer-2"]
    sleeper.send(signal.SIGSTOP)
    lost = swarm.coordinator.until("member_lost")
    assert (lost["peer"], lost["reason"]) == ("peer-2", "lease_expired")
    for peer in LIVING:
        swarm.peers[peer].until("step", lambda event: event["swarm_size"] == 3)
    sleeper.send(signal.SIGCONT)
    back = swarm.coordinator.until("topology", lambda event: event["reason"] == "joined")
    assert back["members"] == ["peer-0", "peer-1", "peer-2", "peer-3"]
    finished = swarm.finish()
    for peer in LIVING:
        alone = [event for event in swarm.steps(peer).values() if event["swarm_size"] == 3]
        print(peer, len(alone), sum(e["missed"] for e in alone), [ (e["step"],e["wait_s"],e["swarm_size"]) for e in swarm.steps(peer).values() if e["wait_s"]>.3])
    print(back)
    own = sorted(swarm.steps("peer-2"))
    print("own",[(a,b) for a,b in pairwise(own) if b-a>1], [ (e["step"],e["wait_s"],e["swarm_size"]) for e in swarm.steps("peer-2").values() if e["wait_s"]>.3])
    print(finished)
