"""`admit` is asked by any thread, at any moment of an event: between two instructions, too, it must
not refuse for good what is of use before or after."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from types import FrameType
from typing import Any

from coordinator.trees import Tree
from peer.algorithms import build, core
from peer.algorithms.common_model import CommonModel
from peer.algorithms.core import (
    Epoch,
    Head,
    Kind,
    Lin,
    Mean,
    Message,
    NewView,
    Received,
    Run,
    SendDone,
    Trained,
    Verdict,
    View,
)
from peer.algorithms.last_round import Last, Standing
from peer.algorithms.sgp import SGP
from peer.algorithms.swarmsgd import SwarmSGD
from peer.algorithms.synchronous import Synchronous
from peer.simulator.exact import views
from tests.peer.algorithms.test_synchronous import from_b, training, view

HERE = str(Path(core.__file__).parent)
RUN = Run(total_steps=9, deadline_s=10.0)


def said_meanwhile(judge: Callable[[], Verdict], action: Callable[[], object]) -> list[Verdict]:
    """What is said of a message before, between all instructions of what is done, and after that;
    each verdict once for as long as it stands."""
    said = [judge()]

    def trace(frame: FrameType, what: str, _: Any) -> Any:
        if not frame.f_code.co_filename.startswith(HERE):
            return None
        frame.f_trace_opcodes = True
        if what in ("opcode", "return"):
            said.append(judge())
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        action()
    finally:
        sys.settrace(before)
    return [verdict for verdict, _ in groupby([*said, judge()])]


def received(head: Head) -> Received:
    return Received(head, (Message(head),))


def test_the_first_message_of_an_epoch_is_not_one_of_the_epoch_before() -> None:
    """Of the same step, as a peer may have got, and even used, when the topology changes."""
    peer = training(2)
    peer.handle(from_b(2), 2.0)
    head = from_b(2, epoch=2).head
    event = NewView(view(2, effective_step=2))
    said = said_meanwhile(lambda: peer.admit(head), lambda: peer.handle(event, 3.0))
    assert said == [Verdict.EPOCH_AHEAD, Verdict.ACCEPTED]


def test_a_message_of_the_next_step_is_not_late_where_a_step_has_rounds() -> None:
    (_, of_one) = views([Tree(2, ((0, 1),))])
    peer = SGP(RUN)
    peer.handle(NewView(of_one), 0.0)
    peer.handle(Trained(0, 1), 1.0)
    head = Head("peer-0", 1, of_one.epoch, 0, Kind.PUSH, count=1)
    peer.handle(received(head), 2.0)
    last, following = replace(head, round=1), replace(head, step=1)
    said = said_meanwhile(lambda: peer.admit(following), lambda: peer.handle(received(last), 3.0))
    assert said == [Verdict.ACCEPTED]
    assert peer.step == 1


def test_an_offer_of_another_life_is_not_one_that_was_answered() -> None:
    """It counts its exchanges from one again."""
    before = View(Epoch(1, 1), 0, "a", {"a": 1, "b": 1}, ({"b": 1},), neighbours=("b",))
    after = replace(before, epoch=Epoch(1, 2), members={"a": 1, "b": 2})
    peer = SwarmSGD(RUN)
    peer.handle(NewView(before), 0.0)
    offer = Head("b", 1, before.epoch, 0, Kind.OFFER, count=1, exchange=1)
    (reply,) = [e for e in peer.handle(received(offer), 1.0) if isinstance(e, core.Send)]
    peer.handle(SendDone("b", reply.head, Verdict.ACCEPTED), 2.0)
    again = replace(offer, epoch=after.epoch, incarnation=2)
    said = said_meanwhile(lambda: peer.admit(again), lambda: peer.handle(NewView(after), 3.0))
    assert said == [Verdict.EPOCH_AHEAD, Verdict.ACCEPTED]


# --- the last round -------------------------------------------------------------------------------


def ending(of: View) -> CommonModel:
    """A peer whose steps are done."""
    run = Run(0, deadline_s=10.0)
    method = build("relaysgd", {}, run)
    assert isinstance(method, Synchronous)
    peer = CommonModel(method, run)
    peer.handle(NewView(of), 0.0)
    return peer


STAR = [Tree(3, ((0, 1), (0, 2)))]  # peer-0 is the root


def last(what: Last, epoch: Epoch, sender: str = "peer-1", **more: Any) -> Head:
    given = {"count": 1, "exchange": what}
    return Head(sender, 1, epoch, 0, Kind.RELAY, **(given | more))


def test_a_sum_of_an_epoch_is_not_one_of_the_epoch_before() -> None:
    (before, *_), (after, *_) = views(STAR), views(STAR, epoch=Epoch(1, 2))
    peer = ending(before)
    peer.handle(received(last(Last.SUM, before.epoch)), 1.0)
    head = last(Last.SUM, after.epoch)
    said = said_meanwhile(lambda: peer.admit(head), lambda: peer.handle(NewView(after), 2.0))
    assert said == [Verdict.EPOCH_AHEAD, Verdict.ACCEPTED]


def test_that_a_child_has_the_mean_is_to_be_said_in_each_epoch() -> None:
    (before, *_), (after, *_) = views(STAR), views(STAR, epoch=Epoch(1, 2))
    peer = ending(before)
    for child in ("peer-1", "peer-2"):
        peer.handle(received(last(Last.SUM, before.epoch, child)), 1.0)
    assert peer.held
    has_it = {"count": 0, "lost": True, "mean": peer.held}
    peer.handle(core.Gone("peer-1", last(Last.HAVE, before.epoch, **has_it)), 2.0)
    head = last(Last.HAVE, after.epoch, **has_it)
    said = said_meanwhile(lambda: peer.admit(head), lambda: peer.handle(NewView(after), 3.0))
    assert said == [Verdict.EPOCH_AHEAD, Verdict.ACCEPTED]


def test_that_a_child_has_a_mean_is_not_that_it_has_an_older_one() -> None:
    (here, *_) = views(STAR, epoch=Epoch(1, 9))
    older, newer = (Mean(Epoch(1, number), ("peer-0",)) for number in (1, 2))
    standing = Standing()
    standing.held, standing.have = older, {"peer-1"}
    head = last(Last.HAVE, here.epoch, count=0, lost=True, mean=newer)
    said = said_meanwhile(lambda: standing.judge(here, head), lambda: standing.hold(newer))
    assert said == [Verdict.EPOCH_AHEAD, Verdict.ACCEPTED]


def test_half_of_a_mean_is_not_that_of_an_older_one() -> None:
    _, here, *_ = views([*STAR, *STAR], epoch=Epoch(1, 9))
    older, newer = (Mean(Epoch(1, number), ("peer-0",)) for number in (1, 2))
    standing = Standing()
    standing.coming, standing.halves = older, {1: Lin(())}
    head = last(Last.MEAN, here.epoch, "peer-0", tree=1, mean=newer)
    said = said_meanwhile(lambda: standing.judge(here, head), lambda: standing.expect(newer))
    assert said == [Verdict.ACCEPTED]
