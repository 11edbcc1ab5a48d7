"""Rule R7: what is under way."""

from __future__ import annotations

from peer.algorithms.core import Cancel, Effect, Epoch, Head, Kind, Send
from peer.algorithms.sending import UnderWay


def send(step: int, to: str = "b", tree: int = 0) -> Send:
    return Send(to, Head("a", 1, Epoch(1, 1), step, Kind.RELAY, tree=tree, count=1), ())


def steps_cancelled(effects: list[Effect]) -> list[int]:
    return [effect.head.step for effect in effects if isinstance(effect, Cancel)]


def test_r7_a_third_message_cancels_the_oldest() -> None:
    under_way = UnderWay()
    assert under_way.send(send(0)) == [send(0)]
    assert under_way.send(send(1)) == [send(1)]
    assert under_way.send(send(2)) == [Cancel("b", send(0).head), send(2)]
    assert steps_cancelled(under_way.send(send(3))) == [1]


def test_r7_with_overlap_there_is_room_for_one_more() -> None:
    under_way = UnderWay(lag=1)
    cancelled = [steps_cancelled(under_way.send(send(step))) for step in range(5)]
    assert cancelled == [[], [], [], [0], [1]]


def test_r7_holds_for_each_neighbour_and_tree() -> None:
    under_way = UnderWay()
    for to, tree in [("b", 0), ("b", 1), ("c", 0)]:
        for step in (0, 1):
            assert steps_cancelled(under_way.send(send(step, to, tree))) == []


def test_r7_an_answered_message_is_not_under_way() -> None:
    under_way = UnderWay()
    under_way.send(send(0))
    under_way.send(send(1))
    under_way.done("b", send(0).head)
    under_way.done("b", send(0).head)  # a second answer, to a duplicate, is of no interest
    under_way.done("c", send(1).head)  # nor is one from somebody else
    assert steps_cancelled(under_way.send(send(2))) == []
    assert steps_cancelled(under_way.send(send(3))) == [1]


def test_what_goes_to_peers_that_left_is_cancelled() -> None:
    under_way = UnderWay()
    for to in ("b", "c"):
        under_way.send(send(0, to))
    assert under_way.keep({"a", "c"}) == [Cancel("b", send(0, "b").head)]
    assert under_way.keep({"a", "c"}) == []
