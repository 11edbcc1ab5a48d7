"""Partners drawn by weight: whole simulated runs, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from peer.config import check_algorithm
from peer.simulator.run import simulate
from relayswarm.config import parse
from relayswarm.errors import ConfigError

SWARM = ("task.name=quadratics", "peers=4", "topology.graph=complete", "algorithm.name=swarmsgd")


def replies(*overrides: str) -> dict[str, int]:
    """How many messages each peer sent beyond its own 200 offers: answers to others' calls."""
    outcome = simulate(parse("", [*SWARM, "steps=200", *overrides]), None, lambda _: None)
    return {peer.id: peer.messages_sent - 200 for peer in outcome.peers}


def test_a_light_peer_is_called_less_often_a_heavy_one_more() -> None:
    even, uneven = replies(), replies("algorithm.neighbour_weights={peer-0 = 0.01, peer-3 = 4}")
    assert uneven["peer-0"] < even["peer-0"] / 4
    assert uneven["peer-3"] > 1.5 * uneven["peer-1"]


@pytest.mark.parametrize("method", ["swarmsgd", "adpsgd"])
def test_equal_weights_leave_a_run_as_it_is(method: str) -> None:
    def metrics(*overrides: str) -> list[Any]:
        settings = [*SWARM, f"algorithm.name={method}", "steps=20", *overrides]
        return [p.metrics for p in simulate(parse("", settings), None, lambda _: None).peers]

    assert metrics() == metrics("algorithm.neighbour_weights={peer-1 = 1}") != []


@pytest.mark.parametrize("weight", ["0", "-1", "nan", "inf"])
def test_what_is_no_weight_is_refused(weight: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_algorithm(parse("", [*SWARM, f"algorithm.neighbour_weights={{peer-2 = {weight}}}"]))
    assert caught.value.field == "algorithm.neighbour_weights.peer-2"
    assert caught.value.remedy


def test_other_methods_scripts_and_strangers_are_refused() -> None:
    weights = "algorithm.neighbour_weights={peer-9 = 2}"
    with pytest.raises(ConfigError, match="relaysgd has no such option"):
        check_algorithm(parse("", [weights]))
    script = 'algorithm.options.script=[["peer-0", "peer-9"]]'
    with pytest.raises(ConfigError, match="says who calls whom"):
        check_algorithm(parse("", [*SWARM, weights, script]))
    with pytest.raises(ConfigError, match="no peer of this run") as caught:
        simulate(parse("", [*SWARM, weights]), None, lambda _: None)
    assert caught.value.field == "algorithm.neighbour_weights"
