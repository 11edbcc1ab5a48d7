"""Evaluations that also tell what models were worth before they were averaged."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from coordinator.member_metrics import EvaluatedMetric, Evaluation
from coordinator.views import lay_out
from peer.algorithms.metric_relay import SwarmMean
from peer.baseline import plain
from peer.before_averaging import BeforeAveraging
from peer.outcome import PeerOutcome, headline
from peer.report import Comparison, summarize
from peer.simulator.metric_mail import MetricMail
from peer.simulator.run import simulate
from peer.simulator.world import perfect_link
from peer.swarm_metrics import SwarmMetrics
from peer.tasks.registry import load_task
from peer.training.trainer import Trainer, make_site
from peer.views import peer_ids, views_of
from relayswarm.config import parse
from relayswarm.errors import ConfigError
from relayswarm.task import Measured

RUN = ("peers=3", "steps=4", "task.name=digits", "topology.graph=chain", "data.batch_size=8")
BOTH = "evaluation.before_averaging=true"


def test_it_is_the_model_that_the_local_steps_have_left() -> None:
    """Of each peer, against a trainer that takes the same steps; and what follows from these."""
    settings = (*RUN, "algorithm.name=allreduce", "algorithm.local_steps=2", "evaluation.every=2")
    config = parse(
        "",
        [*settings, BOTH, 'data.weighting="declared"', "data.weights={peer-0=1,peer-1=6,peer-2=1}"],
    )
    events: list[dict[str, Any]] = []
    outcome = simulate(config, None, events.append)
    rigs = [Trainer(load_task(config.task), config, make_site(config, k)) for k in range(3)]
    weights = torch.tensor([1.0, 6.0, 1.0])
    told: dict[tuple[str, int], Any] = {}
    for step in range(4):
        for rig in rigs:
            rig.train(step)
            before = plain(rig.evaluate())
            told[f"peer-{rig.site.shard}", step + 1] = before
        halves = torch.stack([rig.flat.vector for rig in rigs])
        for rig in rigs:
            rig.flat.vector.copy_((weights @ halves) / 8)
    evaluations = [e for e in events if e["event"] == "evaluation"]
    assert [e["step"] for e in evaluations] == [2] * 3
    ends = [{"peer": p.id, "step": 4, "metrics": p.metrics} for p in outcome.peers]
    for e in [*evaluations, *ends]:
        assert list(e["metrics"]) == ["loss", "accuracy", "before_loss", "before_accuracy"]
        before = told[e["peer"], e["step"]]
        assert e["metrics"]["before_loss"] == pytest.approx(before["loss"], rel=1e-5)
        assert abs(e["metrics"]["loss"] - before["loss"]) > 1e-4
    report = summarize(outcome, Comparison())
    values = [p.metrics["before_accuracy"] for p in outcome.peers]
    mean = (values[0] + 6 * values[1] + values[2]) / 8
    assert report["worst"]["before_accuracy"] == min(values)
    assert report["mean"]["before_accuracy"] == pytest.approx(sum(values) / 3)
    assert report["weighted_mean"]["before_accuracy"] == pytest.approx(mean)
    assert report["swarm_metrics"]["metrics"]["before_accuracy"] == pytest.approx(mean)


def test_without_being_asked_for_nothing_is_measured_twice() -> None:
    outcome = simulate(parse("", RUN), None, lambda _: None)
    assert list(outcome.peers[0].metrics) == ["loss", "accuracy"]


def test_what_sums_up_a_run_is_of_averages() -> None:
    assert headline(["loss", "gap", "before_loss", "before_gap"]) == ("loss", "gap")
    peers = [
        PeerOutcome("peer-0", 4, {"accuracy": 0.5, "before_accuracy": 0.25}),
        PeerOutcome("peer-1", 4, {"accuracy": 0.75}),  # it came for the last step
    ]
    outcome = simulate(parse("", RUN), None, lambda _: None)
    report = summarize(type(outcome)(outcome.config, peers, [], 1.0), Comparison({"accuracy": 1}))
    assert report["mean"] == {"accuracy": 0.625, "before_accuracy": None}
    assert report["consensus_model"] == {"accuracy": 1}


def test_who_has_not_trained_in_the_step_before_passes_on_what_others_have_measured() -> None:
    config = parse("", [*RUN, BOTH])
    known: dict[str, list[dict[str, Any]]] = {peer: [] for peer in peer_ids(3)}
    mail = MetricMail(perfect_link, lambda *_: True)
    for peer in known:
        mail.open(peer, config, known[peer].append)
    for view in views_of(lay_out(config, peer_ids(3)), correct_lr=False):
        mail.boxes[view.me].viewed(view)
    alone, both = {"loss": Measured(4.0, 1.0)}, {"before_loss": Measured(8.0, 1.0)}
    mail.boxes["peer-1"].measured(4, alone)
    for peer in ("peer-0", "peer-2"):
        mail.boxes[peer].measured(4, {**alone, **both})
    mail.run_out()
    for events in known.values():
        (event,) = events
        assert event["peers"] == 3
        assert event["metrics"] == {"loss": 4.0, "before_loss": 8.0}
        assert event["measured_by"] == {"loss": 3, "before_loss": 2}


def test_a_law_that_allows_a_metric_does_not_allow_it_before_averaging() -> None:
    known: list[SwarmMean] = []
    box = SwarmMetrics(
        parse("", [*RUN, BOTH]),
        lambda _: None,
        lambda _: None,
        known.append,
        may_leave=lambda name: name == "loss",
    )
    (view,) = (v for v in views_of(lay_out(parse("", ["peers=1"]), peer_ids(1)), correct_lr=False))
    box.viewed(view)
    box.measured_last({"loss": Measured(4.0, 1.0), "before_loss": Measured(8.0, 1.0)})
    assert {name: s.peers for name, s in known[-1].sums.items()} == {"loss": 1, "before_loss": 0}
    assert box.own == Evaluation(4, (EvaluatedMetric("loss", 4.0, 1.0),))


def test_what_stands_for_both_is_refused() -> None:
    before = BeforeAveraging(parse("", [*RUN, BOTH]), lambda _: True)
    before.trained(3, lambda: {"loss": Measured(1.0)})
    with pytest.raises(ConfigError, match=r"task.evaluate.before_loss = 2.0: is the name of what"):
        before.joined(4, {"loss": Measured(1.0), "before_loss": Measured(2.0)})
    assert before.joined(5, {"loss": Measured(1.0)}) == {"loss": Measured(1.0)}


@pytest.mark.parametrize("algorithm", ["swarmsgd", "adpsgd"])
def test_pairs_have_no_such_moment(algorithm: str) -> None:
    config = parse("", [*RUN, BOTH, f"algorithm.name={algorithm}"])
    with pytest.raises(ConfigError, match=rf"evaluation.before_averaging = True: {algorithm} has"):
        simulate(config, None, lambda _: None)


def test_peers_are_not_stacked_then() -> None:
    with pytest.raises(ConfigError, match="before averaging cannot be stacked"):
        simulate(parse("", [*RUN, BOTH]), None, lambda _: None, stacked="on")
