"""What the driver asks of vectors and host, and in which order."""

from __future__ import annotations

from typing import Any

from peer.algorithms.clipping import clipped
from peer.algorithms.core import (
    LIVE,
    Averaged,
    Drop,
    DropReason,
    Effect,
    Epoch,
    Head,
    Kind,
    Lin,
    Message,
    Reg,
    Set,
    Tick,
    Train,
)
from peer.driver import Driver

X, OLD = Reg(LIVE), Reg("old")
HEAD = Head("peer-1", 1, Epoch(1, 1), 0, Kind.RELAY)
MESSAGE = Message(HEAD, 0, None)
MEAN = Set(X, Lin(((1, X), (1, MESSAGE)), 2))
KEEP = Set(OLD, Lin(((1, X),)))
END = Averaged(0, 2, 2, 1, 0, 0, 0.0, 0)
TRAIN = Train(1, 1, None)


class Recorder:
    """An algorithm that emits `effects`, and the vectors and the host that they are asked of."""

    def __init__(self, *effects: Effect) -> None:
        self.effects = effects
        self.asked: list[Any] = []
        Driver(self, self, self).feed(Tick(), 0.0)  # type: ignore[arg-type]

    def handle(self, event: object, now: float) -> tuple[Effect, ...]:  # noqa: ARG002
        return self.effects

    def set_together(self, sets: list[Set]) -> None:
        self.asked.append([one.reg for one in sets])

    def norm(self, lin: Lin, tree: int | None = None) -> float:  # noqa: ARG002
        self.asked.append("norm")
        return 0.0

    def about_to_write(self, name: str) -> None:
        self.asked.append(name)

    def train(self, effect: Train) -> None:
        self.asked.append(effect)

    averaged = dropped = train


def test_registers_are_set_together_before_the_end_of_the_step_is_told() -> None:
    asked = Recorder(MEAN, END, KEEP, TRAIN).asked
    assert asked == [[X, OLD], END, LIVE, TRAIN]


def test_effects_that_touch_vectors_or_others_stay_where_they_are() -> None:
    drop = Drop(HEAD, DropReason.COUNT)
    assert Recorder(KEEP, drop, MEAN).asked == [[OLD], drop, [X]]
    assert Recorder(END, MEAN).asked == [END, [X]]


def test_what_is_clipped_is_measured_once_all_before_it_is_set() -> None:
    held = Set(X, Lin(((1, X), (1, clipped(MESSAGE, X, 1))), 2))
    assert Recorder(MEAN, held, KEEP).asked == [[X], "norm", [X, OLD]]
