"""The virtual clock and the in-memory network, under an algorithm that only takes notes."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction as F
from functools import partial
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.graphs import build_graph
from peer.algorithms import build
from peer.algorithms.core import (
    Algorithm,
    Effect,
    Epoch,
    Event,
    Gone,
    Head,
    Kind,
    PeerId,
    Received,
    Run,
    SendDone,
    Tick,
    Train,
    Verdict,
)
from peer.simulator.exact import ExactBody, ExactSwarm, ExactVectors, Problem, views
from peer.simulator.links import SeededLink
from peer.simulator.traffic import Meter
from peer.simulator.world import RETRY_S, Delivery, Link, World


@dataclass
class Notes(Algorithm):
    """Takes notes of what happens to it, and when."""

    verdicts: list[Verdict] = field(default_factory=list)  # for messages in order, then ACCEPTED
    deadline: float | None = None
    events: list[tuple[float, Event]] = field(default_factory=list)

    def handle(self, event: Event, now: float) -> list[Effect]:
        self.events.append((now, event))
        if isinstance(event, Tick):
            self.deadline = None
        return []

    def next_deadline(self) -> float | None:
        return self.deadline

    def admit(self, head: Head) -> Verdict:  # noqa: ARG002
        return self.verdicts.pop(0) if self.verdicts else Verdict.ACCEPTED

    @property
    def step(self) -> int:
        return 0

    def steps_received(self) -> list[int]:
        return [event.head.step for _, event in self.events if isinstance(event, Received)]


def world_of_two(link: Link, **options: Any) -> tuple[World, Notes, Notes]:
    world = World(link, **options)
    a, b = Notes(), Notes()
    for name, notes in (("a", a), ("b", b)):
        world.add(name, notes, ExactBody(ExactVectors((), {}), (), 1))
    return world, a, b


def message(step: int = 0) -> Head:
    return Head("a", 1, Epoch(1, 1), step, Kind.RELAY, count=1)


def after(*delays: float, lost: bool = False) -> Link:
    """Message k takes `delays[k]`."""

    def link(sender: str, to: str, head: Head) -> Sequence[Delivery]:  # noqa: ARG001
        return (Delivery(delays[head.step], lost),)

    return link


def test_a_message_arrives_after_its_delay_and_is_answered() -> None:
    world, a, b = world_of_two(after(2.5))
    world.transmit("a", "b", message(), ((1, 2),))
    world.run()
    ((when, received),) = b.events
    assert when == 2.5
    assert isinstance(received, Received)
    assert received.messages[0].payload == (1, 2)
    assert a.events == [(2.5, SendDone("b", message(), Verdict.ACCEPTED))]


def test_a_message_that_is_not_admitted_is_not_delivered() -> None:
    world, a, b = world_of_two(after(1.0))
    b.verdicts = [Verdict.STALE_STEP]
    world.transmit("a", "b", message(), ())
    world.run()
    assert b.events == []
    assert a.events == [(1.0, SendDone("b", message(), Verdict.STALE_STEP))]


def test_a_receiver_without_the_view_is_tried_again() -> None:
    traffic = Meter(elements=1, wire_format=None)
    world, a, b = world_of_two(after(1.0), traffic=traffic)
    b.verdicts = [Verdict.EPOCH_AHEAD] * 3
    world.transmit("a", "b", message(), ())
    world.run()
    assert b.steps_received() == [0]
    assert world.now == pytest.approx(1.0 + 3 * RETRY_S)
    assert len(a.events) == 1
    assert (traffic.messages_sent["a"], traffic.messages_retried["a"]) == (1, 3)


def test_what_nobody_wants_is_given_up_once_its_sender_has_left() -> None:
    """Else a run in which somebody stands still would never end."""
    world, a, b = world_of_two(after(1.0), linger_s=5.0)
    b.verdicts = [Verdict.EPOCH_AHEAD] * 10_000
    world.nodes["a"].finished_at = 1.0
    world.transmit("a", "b", message(), ())
    world.run()
    assert a.events == [(world.now, SendDone("b", message(), None))]
    assert world.now == pytest.approx(6.0, abs=2 * RETRY_S)


def test_a_known_loss_is_announced_and_a_silent_one_is_not() -> None:
    world, a, b = world_of_two(after(1.0, lost=True))
    world.transmit("a", "b", message(), ())
    world.run()
    assert b.events == [(1.0, Gone("a", message()))]
    world, a, b = world_of_two(lambda *_: ())
    world.transmit("a", "b", message(), ())
    world.run()
    assert (a.events, b.events) == ([(0.0, SendDone("b", message(), None))], [])


def test_a_refusal_comes_like_a_loss() -> None:
    world, _, b = world_of_two(after(1.0))
    refusal = replace(message(), kind=Kind.REPLY, lost=True)
    world.transmit("a", "b", refusal, ())
    world.run()
    assert b.events == [(1.0, Gone("a", refusal))]


@pytest.mark.parametrize(("ordered", "arrived"), [(True, [0, 1, 2]), (False, [2, 0, 1])])
def test_messages_keep_their_order_unless_they_may_overtake(
    ordered: bool, arrived: list[int]
) -> None:
    world, _, b = world_of_two(after(2.0, 3.0, 1.0), ordered=ordered)
    for step in range(3):
        world.transmit("a", "b", message(step), ())
    world.run()
    assert b.steps_received() == arrived


@given(st.lists(st.tuples(st.floats(0, 5), st.floats(0, 5)), max_size=20))
def test_order_is_kept_to_the_last_bit(pauses_and_delays: list[tuple[float, float]]) -> None:
    world, _, b = world_of_two(after(*(delay for _, delay in pauses_and_delays)))
    when = 0.0
    for step, (pause, _) in enumerate(pauses_and_delays):
        when += pause
        world.at(when, lambda step=step: world.transmit("a", "b", message(step), ()))
    world.run()
    assert b.steps_received() == list(range(len(pauses_and_delays)))


@pytest.mark.parametrize(("cancels", "arrived"), [(True, [1]), (False, [0, 1])])
def test_cancelling_may_come_too_late(cancels: bool, arrived: list[int]) -> None:
    world, _, b = world_of_two(after(1.0, 1.0), cancels=cancels)
    world.transmit("a", "b", message(0), ())
    world.transmit("a", "b", message(1), ())
    world.cancel("b", message(0))
    world.run()
    assert b.steps_received() == arrived


def test_a_deadline_wakes_its_peer_unless_it_has_gone() -> None:
    world, a, _ = world_of_two(after(1.0, 3.0))
    a.deadline = 2.0
    world.transmit("a", "b", message(0), ())  # whose answer lets the world see the deadline
    world.run()
    assert [(when, type(event)) for when, event in a.events] == [(1.0, SendDone), (2.0, Tick)]
    a.deadline = 9.0
    world.transmit("a", "b", message(1), ())
    world.run(lambda: world.now >= 5.0)
    a.deadline = None
    world.run()
    assert [type(event) for _, event in a.events] == [SendDone, Tick, SendDone]


def test_a_dead_peer_neither_sends_nor_takes() -> None:
    world, a, b = world_of_two(after(1.0, 1.0))
    world.transmit("a", "b", message(0), ())
    world.crash("b")
    world.run()
    assert b.events == []
    assert a.events == [(1.0, Gone("b")), (1.0, SendDone("b", message(0), None))]


@settings(max_examples=25)
@given(st.integers(0, 2**32), st.lists(st.floats(0.5, 12.0), max_size=3, unique=True))
def test_progress_is_the_mean_of_the_living_peers_steps(seed: int, crashes: list[float]) -> None:
    """Whenever a peer begins to train, after whatever has come, died and come back."""
    graph, run = build_graph("ring", 5), Run(8, seed=seed, deadline_s=2.0)
    problem = Problem([(F(i),) for i in range(5)], [(F(-i),) for i in range(5)])
    draw = random.Random(seed)
    world = World(SeededLink(seed, delay_s=(0.001, 1.0)), follows_swarm=True)
    seen: list[int | None] = []

    def trains(effect: Train) -> None:
        steps = [node.algorithm.step for node in world.nodes.values() if node.alive]
        assert effect.at == sum(steps) // len(steps)
        seen.append(effect.at)

    def die(peer: PeerId) -> None:
        world.crash(peer)
        world.at(world.now + draw.uniform(0.1, 2.0), lambda: come_back(peer))

    def come_back(peer: PeerId) -> None:
        i = int(peer[5:])
        algorithm = build("swarmsgd", {}, replace(run, start_step=world.progress()))
        vectors = ExactVectors(problem.starts[i], algorithm.registers)
        world.add(peer, algorithm, ExactBody(vectors, problem.targets[i], 1)).on_train = trains
        world.publish([views(graph=graph)[i]])

    swarm = ExactSwarm(
        "swarmsgd",
        views(graph=graph),
        run,
        problem,
        duration_s=lambda i, step: draw.choice([0.5, 1.0, 4.0]),  # noqa: ARG005
        world=world,
    )
    for node in swarm.nodes:
        node.on_train = trains
    for peer, at in zip(draw.sample(list(world.nodes), len(crashes)), crashes, strict=True):
        world.at(at, partial(die, peer))
    swarm.run()
    assert max(seen) >= 6
