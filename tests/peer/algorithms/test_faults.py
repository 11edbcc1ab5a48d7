"""Whole swarms under delays, losses, duplicates and overtaking: what holds whatever happens.

In a coordinate where every model is 1 and training moves nothing, an average of models is 1 exactly
if its weights sum to one, and anything else if a model was counted twice or the count is wrong.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from fractions import Fraction as F

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.double_binary_trees import in_order_tree, mirrored_tree
from coordinator.gossip_weights import metropolis_hastings
from coordinator.graphs import build_graph
from coordinator.trees import Tree
from peer.algorithms.core import (
    LIVE,
    Algorithm,
    Averaged,
    Drop,
    DropReason,
    Effect,
    Epoch,
    Event,
    Head,
    Lin,
    Message,
    PeerId,
    Run,
    Send,
    SendDone,
    Set,
    Verdict,
    View,
)
from peer.simulator.event_log import Logged
from peer.simulator.exact import ExactSwarm, Problem, Vector, views
from peer.simulator.links import LosingLink, SeededLink
from peer.simulator.world import World

STEPS = 8


class Log:
    """All that the peers of a swarm did."""

    def __init__(self) -> None:
        self.entries: list[tuple[PeerId, Event, list[Effect]]] = []

    def wrap(self, peer: PeerId, algorithm: Algorithm) -> Algorithm:
        def log(now: float, event: Event, effects: list[Effect]) -> None:  # noqa: ARG001
            self.entries.append((peer, event, effects))

        return Logged(algorithm, log)

    def effects(self) -> list[tuple[PeerId, Effect]]:
        return [(peer, effect) for peer, _, effects in self.entries for effect in effects]

    def verdicts(self) -> Counter[Verdict | None]:
        return Counter(event.verdict for _, event, _ in self.entries if isinstance(event, SendDone))


def random_tree(n: int, seed: int) -> Tree:
    draw = random.Random(seed)
    order = draw.sample(range(n), n)
    return Tree(n, tuple((order[draw.randrange(k)], order[k]) for k in range(1, n)))


def views_for(name: str, n: int, seed: int) -> list[View]:
    if name == "relaysgd":
        return views([random_tree(n, seed)])
    graph = build_graph("ring", n)
    return views(graph=graph, weights=metropolis_hastings(graph))


def problem(n: int, seed: int) -> Problem:
    """Coordinate 0 is learnt; coordinate 1 is 1 everywhere and stays so."""
    draw = random.Random(seed)

    def vectors(ones: int) -> list[Vector]:
        return [(F(draw.randrange(-9, 10)), F(ones)) for _ in range(n)]

    return Problem(vectors(1), vectors(0), curvature=(F(1), F(0)))


def ones(swarm: ExactSwarm) -> set[F]:
    """Every value that coordinate 1 ever had after an averaging."""
    return {x[1] for models in swarm.models for x in models}


class Chaos:
    """A seeded world in which messages take up to three seconds, and deadlines come after two."""

    def __init__(self, seed: int, *, known: bool, ordered: bool, drop: float = 0.2) -> None:
        self.seed = seed
        link = SeededLink(seed, delay_s=(0.001, 3.0), drop=drop, known=known, duplicate=0.2)
        self.world = World(link, cancels=ordered, ordered=ordered)
        self.log = Log()

    def duration_s(self, i: int, step: int) -> float:
        return random.Random(f"{self.seed} {i} {step}").choice([0.1, 1.0, 5.0])

    def run(self, name: str, n: int, options: Mapping[str, object] | None = None) -> ExactSwarm:
        return ExactSwarm(
            name,
            views_for(name, n, self.seed),
            Run(STEPS, deadline_s=2.0, seed=self.seed),
            problem(n, self.seed),
            options=options,
            duration_s=self.duration_s,
            world=self.world,
            wrap=self.log.wrap,
        ).run()


chaos = st.builds(Chaos, st.integers(0, 2**32), known=st.booleans(), ordered=st.booleans())


# --- whatever happens -----------------------------------------------------------------------------


@settings(max_examples=40)
@given(chaos, st.integers(2, 8), st.booleans())
def test_relaysgd_counts_right_whatever_happens(chaos: Chaos, n: int, overlap: bool) -> None:
    """The total weight stays n: each model at most once in any sum, the rest made up for."""
    swarm = chaos.run("relaysgd", n, {"overlap": overlap})
    assert ones(swarm) == {1}
    assert all(1 <= a.counted <= n for node in swarm.nodes for a in node.history)
    assert Verdict.BAD_COUNT not in chaos.log.verdicts()
    assert not any(
        isinstance(effect, Drop) and effect.reason is DropReason.COUNT
        for _, effect in chaos.log.effects()
    )


@settings(max_examples=20)
@given(chaos, st.integers(2, 8))
def test_counts_as_printed_are_right_too(chaos: Chaos, n: int) -> None:
    """Line 10 divides by n_bar: the average of ones is 1 only if n_bar is what was summed."""
    assert ones(chaos.run("relaysgd", n, {"fallback": "counts"})) == {1}


@settings(max_examples=20)
@given(st.sampled_from(["d2", "sgp", "swarmsgd"]), chaos)
def test_the_other_methods_average_whatever_happens(name: str, chaos: Chaos) -> None:
    assert ones(chaos.run(name, 8)) == {1}


@settings(max_examples=20)
@given(st.sampled_from(["relaysgd", "d2", "sgp"]), chaos)
def test_no_message_is_used_twice(name: str, chaos: Chaos) -> None:
    """Neither in averages nor in what is relayed to one neighbour."""
    chaos.run(name, 8)
    used: Counter[tuple[PeerId, Head]] = Counter()
    relayed: Counter[tuple[PeerId, PeerId, Head]] = Counter()
    for peer, effect in chaos.log.effects():
        if isinstance(effect, Set) and effect.reg.name == LIVE:
            used.update((peer, head) for head in heads(effect.lin))
        if isinstance(effect, Send):
            relayed.update((peer, effect.to, head) for lin in effect.lins for head in heads(lin))
    assert used.total() > 0
    assert used.total() == len(used)
    assert relayed.total() == len(relayed)


def heads(lin: Lin) -> list[Head]:
    return [ref.head for _, ref in lin.terms if isinstance(ref, Message)]


# --- delays alone ---------------------------------------------------------------------------------


@settings(max_examples=20)
@given(st.sampled_from(["relaysgd", "d2", "sgp"]), st.integers(0, 2**32))
def test_a_delay_alone_loses_nothing(name: str, seed: int) -> None:
    chaos = Chaos(seed, known=True, ordered=True, drop=0.0)
    swarm = ExactSwarm(
        name,
        views_for(name, 8, seed),
        Run(STEPS, deadline_s=1e6),
        problem(8, seed),
        duration_s=chaos.duration_s,
        world=chaos.world,
    ).run()
    history = [averaged for node in swarm.nodes for averaged in node.history]
    assert [(a.missed, a.late) for a in history] == [(0, 0)] * (8 * STEPS)


# --- a dead peer ----------------------------------------------------------------------------------


@pytest.mark.parametrize("overlap", [False, True])
def test_a_dead_leaf_costs_at_most_three_deadlines_once(overlap: bool) -> None:
    """To wait for exactly this step and drop what is late would cost a fifth of the messages
    between the living, and half of the step rate, for good."""
    deadline_s, steps, n = 5.0, 30, 5
    link = LosingLink(lambda sender, to, _: "peer-4" in (sender, to), known=False)
    swarm = ExactSwarm(
        "relaysgd",
        views([Tree(n, tuple((i, i + 1) for i in range(n - 1)))]),
        Run(steps, deadline_s=deadline_s),
        problem(n, 0),
        options={"overlap": overlap},
        world=World(link),
    ).run()
    living = swarm.nodes[:4]
    undisturbed_s = steps * 1.001
    finished = [node.finished_at or 0.0 for node in living]
    assert max(finished) <= undisturbed_s + 3 * deadline_s
    assert max(finished) > undisturbed_s + 2 * deadline_s  # three time-outs, not fewer
    between_the_living = [a for node in living[:3] for a in node.history]
    assert sum(a.missed for a in between_the_living) <= 3
    assert [a.missed for a in living[3].history[3:]] == [1] * (len(living[3].history) - 3)


def test_announced_losses_cost_no_time() -> None:
    """A header without payload: the receiver need not wait."""
    link = LosingLink(lambda sender, to, head: (head.step + len(sender + to)) % 2 == 0)
    swarm = ExactSwarm(
        "relaysgd", views([random_tree(6, 1)]), Run(STEPS), problem(6, 0), world=World(link)
    ).run()
    assert swarm.world.now == pytest.approx(STEPS * 1.001)


# --- a change of epoch ----------------------------------------------------------------------------


@settings(max_examples=20)
@given(chaos, st.booleans())
def test_epochs_that_come_at_any_time_hang_nobody(chaos: Chaos, overlap: bool) -> None:
    n = 6
    swarm = ExactSwarm(
        "relaysgd",
        views([random_tree(n, chaos.seed)]),
        Run(STEPS, deadline_s=2.0),
        problem(n, chaos.seed),
        options={"overlap": overlap},
        duration_s=chaos.duration_s,
        world=chaos.world,
    )
    draw = random.Random(chaos.seed)
    for number in range(2, 5):
        step = draw.randrange(STEPS)
        tree = random_tree(n, chaos.seed + number)
        for view in views([tree], epoch=Epoch(1, number), effective_step=step):
            when = draw.uniform(0.0, 20.0)
            swarm.world.at(when, lambda view=view: swarm.world.publish([view]))
    swarm.run()
    assert ones(swarm) == {1}


def test_a_view_without_the_dead_peer_ends_the_waiting() -> None:
    """All keep to their two trees; when peer 3 has gone, a view of three peers is published."""
    link = LosingLink(lambda sender, to, head: "peer-3" in (sender, to) and head.step >= 2, False)
    two_trees = [
        [Tree(n, tuple(tree)) for tree in (in_order_tree(n), mirrored_tree(n))] for n in (4, 3)
    ]
    swarm = ExactSwarm(
        "relaysgd", views(two_trees[0]), Run(STEPS), problem(4, 0), world=World(link)
    )
    second = views(two_trees[1], epoch=Epoch(1, 2), effective_step=3)
    swarm.world.at(4.0, lambda: swarm.world.publish(second))
    swarm.world.run(lambda: all(node.finished_at is not None for node in swarm.nodes[:3]))
    assert swarm.world.now < 4.0 + (STEPS - 2) * 1.1
    last: list[Averaged] = [node.history[-1] for node in swarm.nodes[:3]]
    assert [(a.counted, a.swarm_size) for a in last] == [(3, 3)] * 3
