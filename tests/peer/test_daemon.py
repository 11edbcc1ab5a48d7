"""What a daemon does at its edges, where a whole swarm would have to be lucky to get."""

from __future__ import annotations

import io

import pytest
import torch

from coordinator.trees import Tree
from peer.algorithms.core import (
    Algorithm,
    Effect,
    Epoch,
    Event,
    Finished,
    Gone,
    Head,
    Kind,
    NewView,
    Train,
    Verdict,
)
from peer.announce import Announcer
from peer.checkpoints import Checkpoints
from peer.daemon import Daemon
from peer.metrics import PeerMetrics
from peer.simulator.exact import views
from peer.tasks.registry import load_task
from peer.training.trainer import Trainer, make_site
from relayswarm import config as run_config
from relayswarm.errors import OutOfMemoryError
from relayswarm.net.gate import Denial

CONFIG = run_config.parse("peers = 2\n[task]\nname = 'quadratics'")
OFFER = Head("peer-1", 1, Epoch(1, 1), 0, Kind.OFFER, exchange=1)


class DoneAtOnce(Algorithm):
    """Finishes with its first view, and takes note of the events after that."""

    name = "done at once"
    step = 0

    def __init__(self) -> None:
        self.events: list[Event] = []

    def handle(self, event: Event, now: float) -> list[Effect]:  # noqa: ARG002
        if isinstance(event, NewView):
            return [Finished(0)]
        self.events.append(event)
        return []

    def next_deadline(self) -> float | None:
        return None

    def admit(self, head: Head) -> Verdict:  # noqa: ARG002
        return Verdict.ACCEPTED


@pytest.fixture
def daemon() -> Daemon:
    trainer = Trainer(load_task(CONFIG.task), CONFIG, make_site(CONFIG, 0))
    metrics = PeerMetrics()
    return Daemon(
        "peer-0",
        DoneAtOnce(),
        trainer,
        Checkpoints(None, trainer, metrics, "peer-0"),
        metrics,
        Announcer(speaks=False, stream=io.StringIO()),
    )


def test_a_step_without_memory_ends_training_with_a_remedy(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(*_: object) -> None:
        raise torch.OutOfMemoryError("tried to allocate 2 GiB")

    monkeypatch.setattr(daemon.trainer, "train", train)
    daemon.train(Train(3))
    with pytest.raises(OutOfMemoryError, match=r"step 3 .* than cpu has .*; lower data.batch_size"):
        daemon.run()
    daemon.close()


def test_who_calls_when_the_last_step_is_done_is_not_left_waiting(daemon: Daemon) -> None:
    """The caller would wait for an answer as long as for a peer that hangs."""
    (view, _) = views([Tree(2, ((0, 1),))])
    daemon.post(NewView(view))
    assert daemon.received(OFFER, (torch.zeros(10),)) is Verdict.ACCEPTED
    daemon.post(Gone("peer-1"))
    daemon.run()
    daemon.close()
    algorithm = daemon.algorithm
    assert isinstance(algorithm, DoneAtOnce)
    assert algorithm.events == [Gone("peer-1", OFFER)]  # declined; nothing else matters any more
    assert daemon.admit(OFFER) is Verdict.STALE_STEP
    assert daemon.received(OFFER, (torch.zeros(10),)) is Verdict.STALE_STEP


def test_refusals_that_no_honest_peer_gets_are_counted_and_logged_now_and_then(
    daemon: Daemon, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(1000):
        daemon.refused(Verdict.BAD_COUNT, OFFER)
        daemon.refused(Verdict.STALE_STEP, OFFER)
        daemon.denied(Denial.MALFORMED, "offset = 7: expected 0; send in order")
    assert caplog.messages == [
        "offer of 'peer-1', step 0, refused: bad count",
        "call denied: offset = 7: expected 0; send in order",
    ]
    count = daemon.metrics.registry.get_sample_value
    assert count("relayswarm_peer_messages_refused_total", {"reason": "bad_count"}) == 1000
    assert count("relayswarm_peer_calls_denied_total", {"reason": "malformed"}) == 1000
