"""Faults for worlds of healers, and what must have come of them in the end.

The slices in `make test` and the whole of `make model-check` run the same trials.
"""

from __future__ import annotations

import random
from collections.abc import Collection
from functools import partial

from tests.peer.healing_worlds import TIMERS, Pairs, World
from tests.shapes import connected_shapes

DIES_AT = 0.5
SETTLED_S = 8 * TIMERS.max_age_s  # after the last fault one tree stands


def crash_and_lose(n: int, graph: Pairs, dead: int, *, every: int = 1) -> int:
    """One peer dies, and one message is lost, or late by two max ages: any, from the first on in
    steps of `every`. How many worlds that were."""
    calm = World(n, graph)
    calm.at(DIES_AT, partial(calm.crash, dead))
    calm.run(4 * TIMERS.max_age_s)
    worlds = 0
    for number in range(1 + dead, calm.messages, every):
        for late_s in (None, 2 * TIMERS.max_age_s):
            world = World(n, graph)
            if late_s is None:
                world.loses = lambda _, k, *__, number=number: k == number  # type: ignore[misc]
            else:
                world.delay_s = lambda k, number=number: 6.0 if k == number else 0.05  # type: ignore[misc]
            world.at(DIES_AT, partial(world.crash, dead))
            world.run(DIES_AT + SETTLED_S)
            world.assert_one_tree(world.living())
            worlds += 1
    return worlds


def crash_two(n: int, graph: Pairs, dead: Collection[int], later_s: float) -> None:
    """Two peers die, one so much later than the other."""
    world = World(n, graph)
    for k, peer in enumerate(dead):
        world.at(DIES_AT + k * later_s, partial(world.crash, peer))
    world.run(DIES_AT + later_s + SETTLED_S)
    world.assert_one_tree(world.living())


def part_and_heal(n: int, graph: Pairs, side: Collection[int]) -> None:
    """Each side becomes a swarm of its own; in the end there is one again, under a higher term."""
    world = World(n, graph)
    world.part(side)
    world.run(SETTLED_S)
    others = [k for k in range(n) if k not in side]
    for part in (side, others):
        world.assert_one_tree(part)
    apart, before = max(world.registry.trees), len(world.adopted)
    world.part(())
    world.run(2 * SETTLED_S)
    world.assert_one_tree(range(n))
    terms = [commit.age[0] for _, _, commit in world.adopted[before:]]
    assert terms == sorted(terms)
    assert terms[0] == apart[0] + 1  # and one more if it takes them in one after the other


def random_faults(seed: int, n: int | None = None) -> None:
    """Half a minute of faults of all kinds, then calm."""
    rng = random.Random(seed)
    n = n or rng.choice((3, 4, 5))
    graph = rng.choice(connected_shapes(n))
    world = World(n, graph)
    loss, slow = rng.choice((0.0, 0.1, 0.3)), rng.choice((0.05, 0.5, 3.0))

    def is_bad() -> bool:
        return world.now < 30

    world.loses = lambda *_: is_bad() and rng.random() < loss
    world.delay_s = lambda _: rng.uniform(0.01, slow) if is_bad() else 0.05
    numbers = iter(range(2, 100))
    for _ in range(rng.randrange(1, 6)):
        when, peers = rng.uniform(0, 30), rng.sample(range(n), rng.randrange(1, n))
        fault = rng.choice(("crash", "part", "part", "heal", "lead"))
        if fault == "crash":
            world.at(when, lambda k=peers[0]: _crash_but_one(world, k))  # type: ignore[misc]
        elif fault == "lead":
            world.at(when, lambda p=peers: _lead(world, p, next(numbers)))  # type: ignore[misc]
        else:
            world.at(when, partial(world.part, peers if fault == "part" else ()))
    world.at(30, lambda: world.part(()))
    world.run(30 + SETTLED_S)
    world.assert_one_tree(world.living())


def _crash_but_one(world: World, k: int) -> None:
    if len(world.living()) > 1:
        world.crash(k)


def _lead(world: World, peers: Collection[int], number: int) -> None:
    """A coordinator reaches some of them, with the largest term that they know plus one, or in its
    own old term; it is away again after a while."""
    known = [healer.held for k in peers if (healer := world.peers[k])]
    if known:
        largest = max(known)
        world.lead(peers, (largest[0] + 1, number))
        for k in peers:
            world.at(world.now + 2, lambda k=k: world.leave(k))  # type: ignore[misc]
