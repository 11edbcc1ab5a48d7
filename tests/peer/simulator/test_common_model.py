"""A run that ends in one model: the exact mean of all, the same bits at every peer."""

from __future__ import annotations

import pytest
import torch

from peer.config import build_algorithm
from peer.simulator.run import simulate
from relayswarm.config import parse
from relayswarm.errors import ConfigError

RUN = ("task.name=quadratics", "peers=6", "steps=12")
COMMON = "stop.common_model=true"
CASES = {
    "plain": (),
    "losses in silence": ("faults.drop=0.3", "faults.loss=silent", "transport.deadline_s=2"),
    "known losses": ("faults.drop=0.3",),
    "late, in any order, twice": (
        "faults.jitter_s=3",
        "faults.reorder=true",
        "faults.duplicate=0.5",
    ),
    "two trees": ("topology.tree=double-binary-trees", "topology.graph=complete"),
    "a slow peer": ("faults.slow={peer-3 = 10}", "transport.deadline_s=2"),
    "overlap": ("algorithm.overlap=true",),
    "two vectors in a message": ("algorithm.name=gradient-tracking",),
    "all-reduce": ("algorithm.name=allreduce",),
    "alone": ("peers=1",),
}


def models(*settings: str) -> list[torch.Tensor]:
    outcome = simulate(parse("", [*RUN, *settings]), None, lambda _: None)
    return [peer.model["x"] for peer in outcome.peers if peer.model is not None]


@pytest.mark.parametrize("case", CASES)
def test_all_end_with_the_mean_of_all(case: str) -> None:
    own, common = models(*CASES[case]), models(*CASES[case], COMMON)
    assert len(own) == len(common) == (1 if case == "alone" else 6)
    assert all(torch.equal(model, common[0]) for model in common)
    torch.testing.assert_close(common[0], torch.stack(own).mean(0), rtol=1e-13, atol=1e-13)


def test_who_crashes_before_the_end_is_not_in_it() -> None:
    crash = 'faults.crash=[{peer = "peer-5", at_step = 6}]'
    found = models(crash, "coordinator.lease_s=3", "transport.deadline_s=2", COMMON)
    assert len(found) == 5
    assert all(torch.equal(model, found[0]) for model in found)


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        (("algorithm.name=swarmsgd",), "stop.common_model"),
        (("transport.wire_format=bfloat16",), "transport.wire_format"),
        (("transport.wire_format=lattice",), "transport.wire_format"),
        (("transport.wire_format=float32",), "transport.wire_format"),
    ],
)
def test_what_it_cannot_be_had_with_is_refused(settings: tuple[str, ...], field: str) -> None:
    with pytest.raises(ConfigError, match=rf"{field} = "):
        build_algorithm(parse("", [*RUN, COMMON, *settings]))


def test_fewest_peers_are_of_a_common_model() -> None:
    with pytest.raises(ConfigError, match="min_peers is of the common model"):
        parse("", ["stop.min_peers=2"])


def test_weights_of_the_peers_are_those_of_the_mean() -> None:
    weights = [3.0, 1.0, 2.0, 0.5, 7.0, 1.5]
    table = ", ".join(f"peer-{k} = {weight}" for k, weight in enumerate(weights))
    weighed = ("data.weighting=declared", f"data.weights={{{table}}}")
    own, common = models(*weighed), models(*weighed, COMMON)
    assert all(torch.equal(model, common[0]) for model in common)
    mean = sum(w * model for w, model in zip(weights, own, strict=True)) / sum(weights)
    torch.testing.assert_close(common[0], mean, rtol=1e-12, atol=1e-12)


def test_a_peer_without_data_has_the_common_model_too() -> None:
    found = models('data.forward=["peer-5"]', COMMON)
    assert len(found) == 6
    assert all(torch.equal(model, found[0]) for model in found)


def test_a_run_that_gets_no_better_ends_at_one_step_everywhere() -> None:
    early = ("optimizer.lr=1e-300", "evaluation.every=2", "stop.metric=loss", "stop.patience=2")
    events: list[dict[str, object]] = []
    outcome = simulate(parse("", [*RUN, "steps=100", *early]), None, events.append)
    (stop,) = (event for event in events if event["event"] == "stop")
    assert {peer.steps for peer in outcome.peers} == {stop["step"]}
    assert 6 < int(str(stop["step"])) < 30


def test_a_run_ends_when_its_time_is_over() -> None:
    outcome = simulate(parse("", [*RUN, "steps=100", "stop.max_hours=0.005"]), None, lambda _: None)
    assert {peer.steps for peer in outcome.peers} < {*range(18, 30)}
    assert len({peer.steps for peer in outcome.peers}) == 1
