"""Simulated swarms of sites that do not weigh the same, against the optimum in closed form."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from peer.outcome import RunOutcome
from peer.simulator.run import simulate
from peer.tasks.quadratics import Quadratics
from peer.training.trainer import make_site
from relayswarm.config import RunConfig, parse

WEIGHTS = {"peer-0": 3.0, "peer-1": 0.25, "peer-2": 1.5, "peer-3": 8.0, "peer-4": 1.0}
HETEROGENEOUS = (
    "peers=5",
    "steps=400",
    "seed=3",
    "task.name=quadratics",
    "task.options.heterogeneity=4.0",
    "optimizer.lr=0.5",
    'data.weighting="declared"',
    *(f"data.weights.{peer}={weight}" for peer, weight in WEIGHTS.items()),
)


def _ignore(event: dict[str, Any]) -> None:
    del event


def run(*overrides: str, stacked: bool = False) -> tuple[RunConfig, RunOutcome]:
    config = parse("", [*HETEROGENEOUS, *overrides])
    return config, simulate(config, None, _ignore, stacked="on" if stacked else "off")


def models(outcome: RunOutcome) -> list[NDArray[np.float64]]:
    return [peer.model["x"].numpy() for peer in outcome.peers if peer.model is not None]


def optimum(config: RunConfig, weights: list[float]) -> NDArray[np.float64]:
    """Where sum_i w_i grad f_i(x) = sum_i w_i 2 A_i^T (A_i x + b_i) is 0."""
    problem = Quadratics(config.task.options).problem(make_site(config, 0))
    hessians = 2 * np.swapaxes(problem.a, 1, 2) @ problem.a
    slopes = 2 * np.einsum("nki,nk->ni", problem.a, problem.b)
    w = np.array(weights)
    return np.asarray(-np.linalg.solve(np.einsum("n,nij->ij", w, hessians), w @ slopes))


@pytest.mark.parametrize(
    "method",
    [
        ("topology.graph=chain",),
        ("topology.graph=star", "algorithm.fallback=counts"),
        ("topology.graph=chain", "algorithm.overlap=true", "optimizer.lr=0.2", "steps=1200"),
        ("topology.graph=complete", "topology.tree=double-binary-trees"),
        ("topology.graph=star", "optimizer.relay_lr_correction=true", "optimizer.lr=0.3"),
        ("topology.graph=chain", "algorithm.name=allreduce"),
    ],
)
def test_every_site_ends_at_the_weighted_optimum(method: tuple[str, ...]) -> None:
    config, outcome = run(*method)
    sought = optimum(config, list(WEIGHTS.values()))
    assert np.abs(sought - optimum(config, [1.0] * 5)).max() > 0.1
    assert len(outcome.peers) == 5
    assert max(np.abs(x - sought).max() for x in models(outcome)) < 1e-9


def test_a_site_without_data_ends_there_too() -> None:
    config, outcome = run("peers=6", 'data.forward=["peer-5"]', "topology.graph=star")
    sought = optimum(config, list(WEIGHTS.values()))
    assert len(outcome.peers) == 6
    assert max(np.abs(x - sought).max() for x in models(outcome)) < 1e-9
    forwarder = outcome.peers[5]
    assert forwarder.metrics == {}
    assert outcome.simulation is not None
    assert [peer.local_steps for peer in outcome.peers] == [config.steps] * 5 + [0]
    assert outcome.simulation["gradient_evaluations"] == 5 * config.steps
    known, others = forwarder.swarm_metrics, outcome.peers[0].swarm_metrics  # it relays them, too
    assert known == others
    assert known is not None
    assert known["peers"] == 5


@pytest.mark.parametrize("forwards", [0, 1], ids=["at the end", "between"])
def test_a_site_without_data_is_none_of_those_that_measured(forwards: int) -> None:
    """However the sums have come: an evaluation is complete once all others are in it."""
    settings = ("peers=3", f'data.forward=["peer-{forwards}"]', "topology.graph=chain")
    early = ("optimizer.lr=1e-300", "evaluation.every=2", "stop.metric=loss", "stop.patience=1")
    plain = [setting for setting in HETEROGENEOUS if "weight" not in setting]
    told: list[dict[str, Any]] = []
    outcome = simulate(parse("", [*plain, *settings, *early, "steps=20"]), None, told.append)
    for peer in outcome.peers:
        assert peer.swarm_metrics is not None
        assert peer.swarm_metrics["peers"] == 2
        assert set(peer.swarm_metrics["measured_by"].values()) == {2}
    before = itertools.takewhile(lambda event: event["event"] != "stop", told)
    evaluated = [event["step"] for event in before if event["event"] == "evaluation"]
    assert max(evaluated) == 4, "the second, which is no better"


def test_stacked_peers_weigh_as_they_do_alone() -> None:
    _, alone = run("steps=40")
    _, together = run("steps=40", stacked=True)
    for one, other in zip(models(alone), models(together), strict=True):
        assert np.abs(one - other).max() < 1e-12


def test_equal_weights_change_no_bit() -> None:
    same = [f"data.weights.{peer}=3.7" for peer in WEIGHTS]
    uniform = parse("", [s for s in HETEROGENEOUS if not s.startswith("data.")] + ["steps=30"])
    plain = simulate(uniform, None, _ignore)
    _, weighed = run("steps=30", *same)
    for one, other in zip(models(plain), models(weighed), strict=True):
        assert (one == other).all()


def test_metrics_weigh_as_models_do() -> None:
    _, outcome = run("steps=12")
    known = outcome.peers[0].swarm_metrics
    assert known is not None
    values = [peer.metrics["suboptimality"] for peer in outcome.peers]
    expected = np.average(np.array(values, dtype=float), weights=list(WEIGHTS.values()))
    assert known["weights"]["suboptimality"] == sum(WEIGHTS.values())
    assert known["metrics"]["suboptimality"] == pytest.approx(expected, rel=1e-12)


def test_a_site_without_data_spends_no_time_on_steps() -> None:
    """In a chain with it in the middle nobody waits for it: steps take as long as those of others,
    however slow it is."""
    settings = ("peers=3", 'data.forward=["peer-1"]', "topology.graph=chain", "steps=20")
    plain = [setting for setting in HETEROGENEOUS if "weight" not in setting]
    config = parse("", [*plain, *settings, "faults.slow.peer-1=50"])
    outcome = simulate(config, None, _ignore)
    assert outcome.simulation is not None
    assert outcome.simulation["virtual_seconds"] == pytest.approx(config.steps, abs=0.1)
