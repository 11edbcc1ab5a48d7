"""When a run is to end before its last step."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from coordinator.conductor import StopPublished
from coordinator.members import SwarmMetric, SwarmMetrics
from coordinator.service import status_of
from coordinator.status import show, to_dict
from coordinator.stopping import Stopping, StopRule, Word
from relayswarm.config import parse
from relayswarm.coordinator.v1 import coordinator_pb2 as pb
from relayswarm.errors import ConfigError
from relayswarm.peer.v1 import peer_pb2

RUN = """
peers = 2
steps = 1000
[evaluation]
every = 10
[stop]
metric = "loss"
patience = 2
"""


def told(step: int, value: float, peers: int = 2, metric: str = "loss") -> SwarmMetrics:
    return SwarmMetrics(step, peers, (SwarmMetric(metric, value, 1.0, peers),))


def after(*values: float, metric: str = "loss", patience: int = 2) -> str | None:
    stopping = Stopping(StopRule(None, metric, patience))
    for k, value in enumerate(values):
        for peer in ("a", "b"):
            stopping.heard(peer, told(10 * (k + 1), value, metric=metric), 2)
    return stopping.due(0.0, ("a", "b"))


def test_by_time() -> None:
    stopping = Stopping(StopRule(max_s=3600), began_at=100.0)
    assert stopping.due(3699.9, ()) is None
    assert stopping.due(3700.0, ()) == "stop.max_hours = 1: that time is over"
    assert Stopping(StopRule(max_s=3600)).due(1e9, ()) is None  # it has not begun


def test_by_a_metric_that_gets_no_better() -> None:
    assert after(3, 2, 1) is None
    assert after(3, 2, 2) is None
    assert after(3, 2, 2, 2) == (
        "stop.metric = 'loss': no better in 2 evaluations in a row, by 2 peers' word"
    )
    assert after(3, 4, 2, 4, 3) is not None
    assert after(3, 4, 2, 4, 1) is None
    assert after(0.5, 0.6, 0.7, metric="accuracy") is None
    assert after(0.7, 0.6, 0.5, metric="accuracy") is not None
    assert after(1, math.nan, math.nan) is not None


def test_of_an_evaluation_the_mean_of_most_peers_counts() -> None:
    word = Word("loss")
    word.heard(told(10, 1.0), 2)
    word.heard(told(20, 9.0, peers=1), 2)  # one of two: more may come
    assert word.worse == 0
    word.heard(told(20, 0.5), 2)
    word.heard(told(20, 9.0, peers=1), 2)  # late
    assert word.worse == 0
    word.heard(told(30, 0.6, peers=1), 2)
    word.heard(told(40, 0.4, peers=1), 2)  # so that is all that will come of step 30
    assert word.worse == 1


LIES: dict[str, Callable[[int, float], SwarmMetrics | None]] = {
    "ever worse": lambda step, _: told(step, step, peers=99),
    "ever better": lambda step, _: told(step, -step, peers=99),
    "of the last evaluation at once": lambda step, _: told(10**6 + step, 1e9, peers=99),
    "nothing": lambda step, _: None,  # noqa: ARG005
}


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("n", [3, 4, 9])
def test_one_that_lies_neither_ends_a_run_nor_keeps_it_from_its_end(n: int, lie: str) -> None:
    """And others that are slow to tell, and skip evaluations, do as the truth is."""
    members = [f"peer-{k}" for k in range(n)]
    losses = [9.0, 8.0, 7.0, 6.0, 6.5, 6.1, 6.4]
    stopping = Stopping(StopRule(None, "loss", patience=3))
    ended = []
    for k, loss in enumerate(losses):
        step = 10 * (k + 1)
        lied = LIES[lie](step, loss)
        for _ in range(5):
            if lied is not None:
                stopping.heard("peer-0", lied, n)
        for peer in members[1:]:
            stopping.heard(peer, told(step, loss, peers=n), n)
        ended.append(stopping.due(0.0, members) is not None)
    assert ended == [False] * 6 + [True]


def test_of_two_both_have_to_say_so() -> None:
    stopping = Stopping(StopRule(None, "loss", 1))
    for step in (10, 20):
        stopping.heard("a", told(step, 1.0), 2)
    assert stopping.due(0.0, ("a", "b")) is None
    assert stopping.due(0.0, ("a",)) is not None  # b is gone


def swarm(step: int, loss: float) -> peer_pb2.SwarmMetrics:
    metric = peer_pb2.SwarmMetric(name="loss", mean=loss, weight=1.0, peers=2)
    return peer_pb2.SwarmMetrics(step=step, peers=2, metrics=[metric])


def shown(running: Any) -> int | None:
    """The stop step in the status, as JSON and the page have it."""
    step: int | None = to_dict(status_of(running.conductor))["stop_step"]
    return step


def text(running: Any) -> str:
    written = io.StringIO()
    show(status_of(running.conductor), Console(file=written, width=200))
    return written.getvalue()


def until_told(running: Any) -> int:
    """Two peers join and get no better; the step before which they are told to end."""
    running.join("peer-0")
    running.join("peer-1", advertised_address="127.0.0.1:9999")
    views = running.watch("peer-1")
    assert running.view(views).stop_step == 0
    assert (shown(running), "ends before" in text(running)) == (None, False)
    for step, loss in ((10, 1.0), (20, 2.0), (30, 3.0)):
        for peer in ("peer-0", "peer-1"):
            running.renew(peer, step=step + 1, swarm_metrics=swarm(step, loss))
    view: pb.View = running.view(views)
    published = running.await_notice(StopPublished)
    assert view.stop_step == published.step
    assert view.epoch.number == 1
    assert shown(running) == published.step
    assert f"ends before step {published.step}" in text(running)
    return int(published.step)


def test_all_are_told_one_step_that_none_has_reached(serve: Callable[..., Any]) -> None:
    running = serve(RUN)
    step = until_told(running)
    assert 31 + 1 + 1 <= step <= 1000  # the furthest, the diameter, and one
    running.renew("peer-1", step=step - 1, swarm_metrics=swarm(40, 9.0))
    assert running.conductor.publication.stop_step == step  # it is told once


def test_it_survives_the_coordinator(serve: Callable[..., Any], tmp_path: Path) -> None:
    store = tmp_path / "store.db"
    first = serve(RUN, store=store)
    step = until_told(first)
    first.server.stop()
    first.conductor._store.close()
    again = serve(RUN, store=store)
    again.join("peer-0", step=32)
    again.join("peer-1", step=32, advertised_address="127.0.0.1:9999")
    assert again.view(again.watch("peer-0")).stop_step == step


def test_a_metric_needs_evaluations() -> None:
    with pytest.raises(ConfigError, match=r"stop.metric needs.*evaluation.every"):
        parse("", ["stop.metric=loss"])
