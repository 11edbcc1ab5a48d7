"""What a daemon does at its edges, where a whole swarm would have to be lucky to get."""

from __future__ import annotations

import io
from dataclasses import replace
from unittest.mock import Mock

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
from peer.config import build_algorithm
from peer.daemon import Daemon
from peer.metrics import PeerMetrics
from peer.simulator.exact import views
from peer.tasks.registry import load_task
from peer.training.learner import TrainResult
from peer.training.trainer import Trainer, make_site
from peer.training_thread import TrainingThread
from relayswarm import config as run_config
from relayswarm.config import RunConfig
from relayswarm.errors import OutOfMemoryError
from relayswarm.net.gate import Denial

CONFIG = run_config.parse("peers = 2\n[task]\nname = 'quadratics'")
QUADRATICS = "task.name=quadratics"
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


def daemon_of(config: RunConfig) -> Daemon:
    trainer = Trainer(load_task(config.task), config, make_site(config, 0))
    metrics = PeerMetrics()
    return Daemon(
        "peer-0",
        DoneAtOnce(),
        trainer,
        Checkpoints(None, trainer, metrics, "peer-0"),
        metrics,
        Announcer(speaks=False, stream=io.StringIO()),
        TrainingThread,
    )


@pytest.fixture
def daemon() -> Daemon:
    return daemon_of(CONFIG)


SCRIPT = "algorithm.options.script=[['peer-0', 'peer-1', 1]]"


@pytest.mark.parametrize(
    ("method", "place"),
    [(("swarmsgd",), 9), (("adpsgd",), 9), (("swarmsgd", SCRIPT), None), (("relaysgd",), None)],
)
def test_rates_of_pairs_follow_the_swarm_and_others_the_steps(
    monkeypatch: pytest.MonkeyPatch, method: tuple[str, ...], place: int | None
) -> None:
    name, *more = method
    daemon = daemon_of(run_config.parse("peers = 2", [f"algorithm.name={name}", *more, QUADRATICS]))
    given: list[object] = []

    def train(*all_of_it: object) -> TrainResult:
        given.extend(all_of_it)
        return TrainResult(0.0, 0.1, 0.0, 1)

    monkeypatch.setattr(daemon.trainer, "train", train)
    daemon.pace.told(8.0, own=2)
    daemon.train(Train(3))
    daemon._turn(None)
    daemon.close()
    assert (given[0], given[4]) == (3, place)


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


@pytest.mark.parametrize(("theirs", "begins"), [(5, 7), (7, 7), (9, 9)])
def test_who_was_let_go_takes_a_model_that_is_further_than_its_own_by_then(
    daemon: Daemon, theirs: int, begins: int
) -> None:
    """It trains on while it asks for one; no step is done twice."""
    daemon.trainer.flat.vector.fill_(1.0)
    begun = daemon.start_over(theirs, torch.full_like(daemon.trainer.flat.vector, 2.0))
    daemon._training.steps_done = 7
    daemon._between_steps()
    assert begun.done()
    assert daemon.steps_done == begins
    assert bool((daemon.trainer.flat.vector == (2.0 if theirs > 7 else 1.0)).all())


def test_who_starts_over_in_the_same_life_tells_its_neighbours_and_keeps_the_end(
    daemon: Daemon,
) -> None:
    """They may be in an epoch that it leaves, and would wait there until a deadline."""
    (view, _) = views([Tree(2, ((0, 1),))])
    daemon.outbox = outbox = Mock()
    daemon._begin(build_algorithm(CONFIG))
    daemon.stop_before(12)
    daemon._turn(None)
    daemon.algorithm.handle(NewView(view), 0.0)
    begun = daemon.start_over(8, None)
    daemon._between_steps()
    assert begun.done()
    ((to, head, payload),) = [call.args for call in outbox.send.call_args_list]
    assert (to, head.epoch, head.left, payload) == ("peer-1", view.epoch, True, None)
    after = replace(view, epoch=Epoch(1, 2), effective_step=12)
    assert daemon.algorithm.handle(NewView(after), 0.0) == [Finished(12)]


def test_who_is_far_behind_goes_on_from_that_step_with_its_own_model(daemon: Daemon) -> None:
    """So does a side of a partition, in the tree of all."""
    daemon.trainer.flat.vector.fill_(1.0)
    daemon.start_over(9, None)
    daemon._between_steps()
    assert daemon.steps_done == daemon.algorithm.step == 9
    assert bool((daemon.trainer.flat.vector == 1.0).all())


def test_of_two_threads_that_start_a_peer_over_none_waits_for_ever(daemon: Daemon) -> None:
    """Its lease has run out, and its neighbours have committed a tree, at the same moment."""
    vector = torch.full_like(daemon.trainer.flat.vector, 2.0)
    begun = [daemon.start_over(9, vector), daemon.start_over(7, None)]
    daemon._between_steps()
    assert all(one.done() for one in begun)
    assert daemon.steps_done == daemon.algorithm.step == 9
    late = [daemon.start_over(step, None) for step in (10, 11)]
    daemon.close()
    assert all(one.cancelled() for one in late)


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
    assert daemon.lost(OFFER) is Verdict.STALE_STEP, "nor is one whose offer got lost"


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


def test_a_neighbour_that_cannot_be_reached_is_news_for_the_coordinator(daemon: Daemon) -> None:
    """The lease's thread, which waits for news, renews without delay and tells who is down."""
    daemon.outbox = Mock(down=frozenset({"peer-1"}))
    assert not daemon.news.is_set()
    daemon.unreachable("peer-1")
    assert daemon.news.is_set()
    assert daemon.down == {"peer-1"}


def test_a_snapshot_is_what_the_model_was(daemon: Daemon) -> None:
    """Readers take their time, and training goes on meanwhile."""
    vector = daemon.trainer.flat.vector
    vector.fill_(1.0)
    daemon.close()  # there is no step under way to be waited for
    taken = daemon.snapshot()
    vector.fill_(2.0)
    assert bool((taken.vector == 1.0).all())
