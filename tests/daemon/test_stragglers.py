"""A peer that the fault plan slows down: it takes its time, others wait, models stay the same."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import torch

from peer.simulator.run import simulate

CHAIN = ("task.name=quadratics", "topology.graph=chain", "peers=2", "deterministic=true")
SLOW = "faults.slow={peer-1 = 50}"


def test_a_straggler_costs_time_and_nothing_else(daemons: Callable[..., Any]) -> None:
    swarm = daemons(*CHAIN, SLOW, "steps=30", "transport.deadline_s=100")
    swarm.finish()
    expected = {peer.id: peer.model for peer in simulate(swarm.config, None, lambda _: None).peers}
    for peer, model in expected.items():
        assert model is not None
        for name, tensor in swarm.model(peer).items():
            assert torch.equal(tensor, model[name])
    compute_s = sum(event["compute_s"] for event in swarm.steps("peer-1").values())
    waited_s = sum(event["wait_s"] for event in swarm.steps("peer-0").values())
    assert waited_s > compute_s / 2


def test_a_straggler_that_is_told_to_stop_does_not_dawdle(daemons: Callable[..., Any]) -> None:
    """A step would take it hours; it leaves at once."""
    swarm = daemons(*CHAIN, "faults.slow={peer-1 = 1e9}", "steps=30", "transport.deadline_s=100")
    straggler = swarm.peers["peer-1"]
    straggler.until("peer_started")
    swarm.peers["peer-0"].until("peer_started")
    straggler.send(signal.SIGTERM)
    assert straggler.exit_code() == 0


def test_with_a_time_budget_a_straggler_takes_fewer_local_steps(
    daemons: Callable[..., Any],
) -> None:
    budget = ("algorithm.name=swarmsgd", "algorithm.time_budget_s=0.2")
    swarm = daemons("task.name=quadratics", "peers=2", "steps=8", SLOW, *budget)
    finished = swarm.finish()
    for peer in swarm.peers:
        steps = swarm.steps(peer).values()
        assert len(steps) == 8
        assert min(event["compute_s"] for event in steps) >= 0.2
        assert finished[peer]["local_steps"] == sum(event["local_steps"] for event in steps)
    assert finished["peer-0"]["local_steps"] > 4 * finished["peer-1"]["local_steps"] >= 4 * 8
