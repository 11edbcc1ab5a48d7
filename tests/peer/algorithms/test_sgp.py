"""Stochastic gradient push over fractions, against push-sum written out."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction as F

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.graphs import build_graph
from peer.algorithms.core import (
    Averaged,
    Epoch,
    Head,
    Kind,
    Message,
    NewView,
    OptionError,
    Received,
    Run,
    Send,
    Set,
    Tick,
    Train,
    Trained,
    Verdict,
    View,
)
from peer.algorithms.sgp import SGP, SMALLEST_WEIGHT, Options
from peer.algorithms.synchronous import Phase, Unfit
from peer.simulator.exact import ExactSwarm, Problem, views
from peer.simulator.links import LosingLink, SeededLink
from peer.simulator.world import World
from tests.peer.algorithms.exact_problems import trajectory_of

Losses = set[tuple[int, int]]  # (communication round, receiver)


def push_sum(
    x: list[F], targets: list[F], steps: int, lost: Losses, lr: F = F(1, 2)
) -> tuple[list[list[F]], list[F]]:
    """Masses (x w, w), two rounds a step: the models after each step, and the last weights."""
    n = len(x)
    k = n.bit_length() - 1
    w, trajectory = [F(1)] * n, []
    for t in range(2 * steps):
        if t % 2 == 0:
            x = [x_i + lr * (target - x_i) for x_i, target in zip(x, targets, strict=True)]
        o = 2 ** (t % k)
        mass = [(x[i] * w[i] / 2, w[i] / 2) for i in range(n)]
        for i in range(n):
            came = (F(0), F(0)) if (t, i) in lost else mass[(i + o) % n]
            w[i] = mass[i][1] + came[1]
            x[i] = (mass[i][0] + came[0]) / w[i]
        if t % 2 == 1:
            trajectory.append(list(x))
    return trajectory, w


def sgp_views(n: int, epoch: Epoch | None = None, effective_step: int = 0) -> list[View]:
    return views(graph=build_graph("chain", n), epoch=epoch, effective_step=effective_step)


def problem(starts: list[F], targets: list[F]) -> Problem:
    return Problem([(x,) for x in starts], [(x,) for x in targets])


def weights_of(swarm: ExactSwarm) -> list[float]:
    return [peer.weight for peer in swarm.algorithms if isinstance(peer, SGP)]


sizes = st.sampled_from([2, 4, 8])
numbers = st.lists(st.integers(-9, 9).map(F), min_size=8, max_size=8)


@settings(max_examples=20)
@given(sizes, numbers, numbers, st.integers(0, 2**32))
def test_without_losses_it_is_the_listing(
    n: int, starts: list[F], targets: list[F], seed: int
) -> None:
    """Without losses the weights stay 1, and line 7 averages half and half."""
    swarm = ExactSwarm(
        "sgp",
        sgp_views(n),
        Run(6, deadline_s=1e6),
        problem(starts[:n], targets[:n]),
        duration_s=lambda i, step: 0.5 + (seed >> (i + step) % 29 & 3),
        world=World(SeededLink(seed, delay_s=(0.001, 3.0))),
    ).run()
    expected, weights = push_sum(starts[:n], targets[:n], 6, set())
    assert trajectory_of(swarm) == expected
    assert weights_of(swarm) == [1.0] * n == weights


@settings(max_examples=20)
@given(sizes, numbers, numbers, st.data())
def test_a_lost_message_loses_its_mass(
    n: int, starts: list[F], targets: list[F], data: st.DataObject
) -> None:
    """On both vector and weight, so the ratio stays a proper average."""
    everyone = st.tuples(st.integers(0, 11), st.integers(0, n - 1))
    lost = data.draw(st.sets(everyone, max_size=30))

    def loses(sender: str, to: str, head: Head) -> bool:  # noqa: ARG001
        return (2 * head.step + head.round, int(to[5:])) in lost

    world = World(LosingLink(loses))
    swarm = ExactSwarm(
        "sgp", sgp_views(n), Run(6), problem(starts[:n], targets[:n]), world=world
    ).run()
    expected, weights = push_sum(starts[:n], targets[:n], 6, lost)
    assert trajectory_of(swarm) == expected
    assert weights_of(swarm) == weights
    assert sum(a.missed for node in swarm.nodes for a in node.history) == len(lost)


@settings(max_examples=20)
@given(st.integers(0, 2**32), st.booleans())
def test_mass_is_halved_added_or_lost_but_never_made(seed: int, known: bool) -> None:
    link = SeededLink(seed, delay_s=(0.001, 3.0), drop=0.2, known=known, duplicate=0.3)
    world = World(link, cancels=False, ordered=False)
    starts = [F(i) for i in range(8)]
    swarm = ExactSwarm(
        "sgp", sgp_views(8), Run(8, deadline_s=2.0), problem(starts, starts), world=world
    ).run()
    weights = weights_of(swarm)
    assert all(weight > 0 for weight in weights)
    assert sum(weights) <= 8
    assert all(0 <= x <= 7 for models in swarm.models for (x,) in models)  # proper averages


def test_the_mean_moves_by_the_mean_update_alone() -> None:
    starts, targets = [F(i) for i in range(8)], [F(i * i % 7) for i in range(8)]
    swarm = ExactSwarm("sgp", sgp_views(8), Run(5), problem(starts, targets)).run()
    moved = sum(update[0] for body in swarm.bodies for update in body.updates)
    assert sum(models[-1][0] for models in swarm.models) == sum(starts) + moved


# --- pauses ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "reason"),
    [(1, None), (2, None), (3, Unfit.NOT_A_POWER_OF_TWO), (4, None), (6, Unfit.NOT_A_POWER_OF_TWO)],
)
def test_it_pauses_unless_n_is_a_power_of_two(n: int, reason: Unfit | None) -> None:
    peer = SGP(Run(5))
    effects = peer.handle(NewView(sgp_views(n)[0]), 0.0)
    assert peer.paused_reason is reason
    assert any(isinstance(effect, Train) for effect in effects) is (reason is None)


def test_alone_it_is_gradient_descent() -> None:
    swarm = ExactSwarm("sgp", sgp_views(1), Run(3), problem([F(0)], [F(8)])).run()
    assert trajectory_of(swarm) == [[F(4)], [F(6)], [F(7)]]
    assert swarm.nodes[0].history[-1].expected == 0


def test_a_view_that_fits_ends_the_pause() -> None:
    """Four peers, one leaves, the others pause; one more leaves, the last two go on."""
    starts = [F(0)] * 4
    swarm = ExactSwarm("sgp", sgp_views(4), Run(6), problem(starts, starts))
    swarm.world.publish(sgp_views(3, Epoch(1, 2), effective_step=2))
    swarm.world.run(lambda: swarm.world.now >= 50.0)  # until nothing happens any more
    assert [peer.step for peer in swarm.algorithms[:3]] == [2, 2, 2]
    assert {getattr(peer, "paused_reason", None) for peer in swarm.algorithms[:3]} == {
        Unfit.NOT_A_POWER_OF_TWO
    }
    swarm.world.publish(sgp_views(2, Epoch(1, 3), effective_step=4))
    swarm.world.run(lambda: all(node.finished_at for node in swarm.nodes[:2]))
    assert [a.step for a in swarm.nodes[0].history] == [0, 1, 4, 5]
    assert swarm.nodes[0].history[-1].missed == 0


def test_a_view_that_does_not_fit_may_come_in_the_middle_of_a_step() -> None:
    """The step is ended alone; the weight starts over."""
    peer = SGP(Run(5))
    peer.handle(NewView(sgp_views(4)[0]), 0.0)
    peer.handle(Trained(0, 1), 1.0)
    effects = peer.handle(NewView(sgp_views(3, Epoch(1, 2))[0]), 1.5)
    assert [effect.step for effect in effects if isinstance(effect, Averaged)] == [0]
    assert (peer.phase, peer.step, peer.weight) == (Phase.IDLE, 1, 1.0)
    assert peer.next_deadline() is None


@pytest.mark.parametrize("n", [2, 4, 8])
def test_with_one_round_a_step_offsets_change_from_step_to_step(n: int) -> None:
    """x_i <- (x_i + x_{i+o}) / 2 with o = 1, 2, 4, 1, ... in steps 0, 1, 2, 3, ..."""
    x, targets = [F(i * i) for i in range(n)], [F(7 * i % 5) for i in range(n)]
    swarm = ExactSwarm(
        "sgp",
        views(graph=build_graph("complete", n)),
        Run(total_steps=7),
        Problem([(x_i,) for x_i in x], [(target,) for target in targets]),
        options={"rounds_per_step": 1},
    ).run()
    for t, models in enumerate(zip(*swarm.models, strict=True)):
        half = [(x_i + target) / 2 for x_i, target in zip(x, targets, strict=True)]
        o = 2 ** (t % (n.bit_length() - 1))
        x = [(half[i] + half[(i + o) % n]) / 2 for i in range(n)]
        assert [model[0] for model in models] == x


def test_other_numbers_of_rounds_are_refused() -> None:
    with pytest.raises(OptionError, match="rounds_per_step = 3"):
        Options(rounds_per_step=3)  # type: ignore[arg-type]


# --- the door, and rounds ------------------------------------------------------------------------


def push(step: int, round_: int, sender: int, weight: float = 0.5) -> Head:
    """To peer 0 of 8, in offset order 1 2 | 4 1 | 2 4 | ..."""
    return Head(
        f"peer-{sender}", 1, Epoch(1, 1), step, Kind.PUSH, round=round_, count=1, weight=weight
    )


@pytest.mark.parametrize(
    ("head", "verdict"),
    [
        (push(0, 0, 1), Verdict.ACCEPTED),
        (push(0, 1, 2), Verdict.ACCEPTED),
        (push(1, 0, 4), Verdict.ACCEPTED),
        (push(1, 1, 1), Verdict.ACCEPTED),
        (push(0, 1, 1), Verdict.NOT_A_NEIGHBOUR),
        (push(0, 2, 4), Verdict.NOT_A_NEIGHBOUR),  # a step has two rounds
        (replace(push(0, 0, 1), tree=1), Verdict.NOT_A_NEIGHBOUR),
        (push(0, 0, 1, weight=0.0), Verdict.BAD_COUNT),
        (replace(push(0, 0, 1), count=2), Verdict.BAD_COUNT),
        (push(0, 0, 1, weight=-1.0), Verdict.BAD_COUNT),
        (push(0, 0, 1, weight=math.nan), Verdict.BAD_COUNT),
        (push(0, 0, 1, weight=9.0), Verdict.BAD_COUNT),
    ],
)
def test_each_round_has_one_sender(head: Head, verdict: Verdict) -> None:
    peer = SGP(Run(5))
    peer.handle(NewView(sgp_views(8)[0]), 0.0)
    assert peer.admit(head) is verdict


def test_a_peer_of_two_keeps_what_comes_early() -> None:
    """Both rounds of step 1 may be in before its training ends."""
    peer = SGP(Run(5))
    peer.handle(NewView(sgp_views(2)[0]), 0.0)
    history = []
    for step in range(3):
        for round_ in (0, 1):
            head = push(step, round_, 1)
            peer.handle(Received(head, (Message(head),)), step + 0.5)
        effects = peer.handle(Trained(step, 1), step + 1.0)
        history += [effect for effect in effects if isinstance(effect, Averaged)]
    assert [(a.step, a.expected, a.missed) for a in history] == [(0, 2, 0), (1, 2, 0), (2, 2, 0)]


def test_r4_a_sender_may_be_ahead_by_less_than_k_rounds() -> None:
    """Of 8 peers, k = 3: round 2 t + 2 can be reached without this peer, round 2 t + 3 cannot."""
    for head, labels in [(push(1, 0, 4), {0}), (push(1, 1, 1), {1})]:
        peer = SGP(Run(5))
        peer.handle(NewView(sgp_views(8)[0]), 0.0)
        peer.handle(Received(head, (Message(head),)), 0.5)
        effects = peer.handle(Trained(0, 1), 1.0)
        assert {send.head.step for send in effects if isinstance(send, Send)} == labels


def test_each_round_has_its_own_deadline() -> None:
    peer = SGP(Run(5, deadline_s=10.0))
    peer.handle(NewView(sgp_views(4)[0]), 0.0)
    peer.handle(Trained(0, 1), 1.0)
    assert peer.next_deadline() == 11.0
    peer.handle(Tick(), 11.0)
    assert peer.next_deadline() == 21.0
    effects = peer.handle(Tick(), 21.0)
    (averaged,) = (effect for effect in effects if isinstance(effect, Averaged))
    assert (averaged.missed, averaged.waited_s) == (2, 20.0)


def test_a_weight_never_vanishes() -> None:
    """A thousand rounds of silence; then the ratio is still a number in single precision."""
    peer = SGP(Run(2000))
    peer.handle(NewView(sgp_views(2)[0]), 0.0)
    for step in range(600):
        peer.handle(Trained(step, 1), 100.0 * step)
        while (deadline := peer.next_deadline()) is not None:
            peer.handle(Tick(), deadline)
    assert peer.weight == SMALLEST_WEIGHT
    tiny = push(600, 0, 1, weight=2.0**-1000)
    peer.handle(Received(tiny, (Message(tiny),)), 60_000.0)
    effects = peer.handle(Trained(600, 1), 60_000.5)
    (lin,) = (effect.lin for effect in effects if isinstance(effect, Set))
    assert [coef for coef, _ in lin.terms] == [0.5, 0.5]
    assert lin.divisor == 1
