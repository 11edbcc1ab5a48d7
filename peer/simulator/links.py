"""Behaviours of the simulated network: how long messages take, which are lost or come twice."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from peer.algorithms.core import Head, PeerId
from peer.simulator.world import Delivery


@dataclass(frozen=True)
class SeededLink:
    """Draws the fate of each message from a seed and the message's place in the run alone.

    Delays are even between the two bounds, in seconds. A message is lost with probability `drop`,
    with an announcement if `known`, and comes a second time with probability `duplicate`.
    """

    seed: int
    delay_s: tuple[float, float] = (0.001, 0.001)
    drop: float = 0.0
    known: bool = True
    duplicate: float = 0.0

    def __call__(self, sender: PeerId, to: PeerId, head: Head) -> Sequence[Delivery]:
        place = (head.kind.value, head.tree, head.epoch.age, head.step, head.round, head.exchange)
        draw = random.Random(repr((self.seed, sender, to, *place)))
        if draw.random() < self.drop:
            return (Delivery(draw.uniform(*self.delay_s), lost=True),) if self.known else ()
        copies = 1 + (draw.random() < self.duplicate)
        return [Delivery(draw.uniform(*self.delay_s)) for _ in range(copies)]


@dataclass(frozen=True)
class LosingLink:
    """Loses the messages that `loses` picks, with an announcement if `known`; others take 1 ms."""

    loses: Callable[[PeerId, PeerId, Head], bool]
    known: bool = True

    def __call__(self, sender: PeerId, to: PeerId, head: Head) -> Sequence[Delivery]:
        if not self.loses(sender, to, head):
            return (Delivery(0.001),)
        return (Delivery(0.001, lost=True),) if self.known else ()
