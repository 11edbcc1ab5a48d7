"""What a neighbour can compute of a peer's movements from messages alone, over fractions."""

from __future__ import annotations

from collections import defaultdict
from fractions import Fraction

import pytest

from coordinator.trees import Tree
from peer.algorithms.core import Algorithm, Event, Message, PeerId, Received, Run
from peer.simulator.exact import ExactSwarm, Problem, Vector, views

N, STEPS = 5, 12
CHAIN = Tree(N, tuple((k, k + 1) for k in range(N - 1)))


def minus(a: Vector, b: Vector) -> Vector:
    return tuple(x - y for x, y in zip(a, b, strict=True))


def plus(a: Vector, b: Vector) -> Vector:
    return tuple(x + y for x, y in zip(a, b, strict=True))


class Overheard:
    """Messages by sender, receiver and step: each is known to both of these."""

    def __init__(self) -> None:
        self.messages: dict[tuple[PeerId, PeerId, int], Message] = {}

    def tap(self, peer: PeerId, algorithm: Algorithm) -> Algorithm:
        handle = algorithm.handle

        def tapped(event: Event, now: float) -> list[object]:
            if isinstance(event, Received):
                head = event.head
                self.messages[head.sender, peer, head.step] = event.messages[0]
            return handle(event, now)

        algorithm.handle = tapped  # type: ignore[method-assign]
        return algorithm

    def model(self, sender: int, receiver: int, step: int) -> Vector:
        payload: Vector = self.messages[f"peer-{sender}", f"peer-{receiver}", step].payload
        return payload

    def count(self, sender: int, receiver: int, step: int) -> int:
        return int(self.messages[f"peer-{sender}", f"peer-{receiver}", step].head.count)


@pytest.fixture(scope="module")
def swarm() -> tuple[ExactSwarm, Overheard]:
    overheard = Overheard()
    start = (Fraction(1), Fraction(-2))
    targets = [(Fraction(3 * i + 1, 7), Fraction(i * i - 4, 3)) for i in range(N)]
    problem = Problem([start] * N, targets, lr=Fraction(1, 3))
    run = Run(total_steps=STEPS, deadline_s=100.0)
    ran = ExactSwarm("relaysgd", views([CHAIN]), run, problem, wrap=overheard.tap).run()
    return ran, overheard


def test_the_neighbour_of_a_leaf_has_its_exact_movement_of_every_step(
    swarm: tuple[ExactSwarm, Overheard],
) -> None:
    """Peer 1 knows where all began, what it sent to the leaf, and what it got from it."""
    ran, overheard = swarm
    x, seen = (Fraction(1), Fraction(-2)), []
    for step in range(STEPS):
        half = overheard.model(0, 1, step)
        seen.append(minus(half, x))
        came, missing = overheard.model(1, 0, step), N - 1 - overheard.count(1, 0, step)
        total = plus(plus(half, came), tuple(missing * k for k in x))
        x = tuple(k / N for k in total)
    errors = [minus(a, b) for a, b in zip(seen, ran.bodies[0].updates, strict=True)]
    assert errors == [(0, 0)] * STEPS
    assert any(k for update in seen for k in update)


def test_of_an_inner_peer_one_neighbour_has_a_sum_and_both_together_the_model(
    swarm: tuple[ExactSwarm, Overheard],
) -> None:
    """Peer 2 between 1 and 3: what goes to 3 is its model after local steps, plus what 1 sent it
    a step before."""
    ran, overheard = swarm
    before = [
        ran.models[2][step - 1] if step else (Fraction(1), Fraction(-2)) for step in range(STEPS)
    ]
    behind = defaultdict(int)
    for step in range(1, STEPS):
        half = plus(before[step], ran.bodies[2].updates[step])
        sum_seen = overheard.model(2, 3, step)
        assert sum_seen == plus(half, overheard.model(1, 2, step - 1))
        assert minus(sum_seen, overheard.model(1, 2, step - 1)) == half
        behind[overheard.count(2, 3, step)] += 1
    assert max(behind) == 3  # models of peers 0, 1 and 2 in one sum
