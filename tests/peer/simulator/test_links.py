"""Links whose messages' fates are a function of a seed and the message's place."""

from __future__ import annotations

import pytest

from peer.algorithms.core import Epoch, Head, Kind
from peer.simulator.links import LosingLink, SeededLink
from peer.simulator.world import Delivery

N = 2000


def message(step: int, epoch: int = 1) -> Head:
    return Head("a", 1, Epoch(1, epoch), step, Kind.RELAY, count=1)


def share(hits: int) -> float:
    return hits / N


def test_the_same_seed_gives_the_same_fates() -> None:
    link = SeededLink(3, delay_s=(0.0, 9.0), drop=0.3, duplicate=0.3)
    fates = [tuple(link("a", "b", message(step))) for step in range(50)]
    assert fates == [tuple(link("a", "b", message(step))) for step in range(50)]
    others = [
        [tuple(SeededLink(4, (0.0, 9.0), 0.3)("a", "b", message(step))) for step in range(50)],
        [tuple(link("a", "c", message(step))) for step in range(50)],
        [tuple(link("a", "b", message(step, epoch=2))) for step in range(50)],
    ]
    assert all(other != fates for other in others)


@pytest.mark.parametrize("known", [True, False])
def test_losses_are_as_frequent_as_said(known: bool) -> None:
    link = SeededLink(0, drop=0.2, known=known)
    fates = [link("a", "b", message(step)) for step in range(N)]
    lost = [fate for fate in fates if not fate or fate[0].lost]
    assert share(len(lost)) == pytest.approx(0.2, abs=0.05)
    assert all(len(fate) == known for fate in lost)


def test_duplicates_and_delays_are_as_said() -> None:
    link = SeededLink(0, delay_s=(1.0, 3.0), duplicate=0.5)
    fates = [link("a", "b", message(step)) for step in range(N)]
    assert share(sum(len(fate) == 2 for fate in fates)) == pytest.approx(0.5, abs=0.06)
    delays = [delivery.delay_s for fate in fates for delivery in fate]
    assert 1.0 <= min(delays) < 1.1
    assert 2.9 < max(delays) <= 3.0


def test_a_losing_link_loses_what_it_is_told() -> None:
    def odd(sender: str, to: str, head: Head) -> bool:  # noqa: ARG001
        return head.step % 2 == 1

    known, silent = LosingLink(odd), LosingLink(odd, known=False)
    assert known("a", "b", message(0)) == silent("a", "b", message(0)) == (Delivery(0.001),)
    assert known("a", "b", message(1)) == (Delivery(0.001, lost=True),)
    assert silent("a", "b", message(1)) == ()
