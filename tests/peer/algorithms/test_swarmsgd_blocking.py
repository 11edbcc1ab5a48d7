"""Blocking SwarmSGD: whole swarms over fractions, then one peer's exchanges event by event."""

from __future__ import annotations

import random
from dataclasses import replace
from fractions import Fraction as F
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.graphs import build_graph
from peer.algorithms.core import (
    Averaged,
    Effect,
    Epoch,
    Finished,
    Gone,
    Head,
    Kind,
    Lin,
    Message,
    NewView,
    Received,
    Reg,
    Run,
    Send,
    SendDone,
    Set,
    Tick,
    Train,
    Trained,
    Verdict,
    View,
)
from peer.algorithms.exchange import Outcome
from peer.algorithms.pairwise import Options
from peer.algorithms.swarmsgd_blocking import BlockingSwarmSGD
from peer.simulator.exact import ExactSwarm, Problem, views
from peer.simulator.links import LosingLink, SeededLink
from peer.simulator.world import World

STEPS = 8

graphs = st.sampled_from([("ring", 6), ("complete", 5), ("star", 4), ("chain", 2)])


def swarm_of(
    graph: tuple[str, int], seed: int, world: World, *, curvature: int = 1, **run: float
) -> ExactSwarm:
    draw = random.Random(seed)
    n = graph[1]
    starts, targets = [[(F(draw.randrange(-9, 10)),) for _ in range(n)] for _ in range(2)]
    return ExactSwarm(
        "swarmsgd",
        views(graph=build_graph(*graph)),
        Run(STEPS, seed=seed, **run),  # type: ignore[arg-type]
        Problem(starts, targets, curvature=(F(curvature),)),
        options={"blocking": True},
        duration_s=lambda i, step: draw.choice([0.5, 1.0, 4.0]),  # noqa: ARG005
        world=world,
    )


@settings(max_examples=25)
@given(graphs, st.integers(0, 2**32))
def test_the_mean_moves_by_the_updates_alone(graph: tuple[str, int], seed: int) -> None:
    """Both peers of an exchange average, and every local step counts in full."""
    world = World(SeededLink(seed, delay_s=(0.001, 3.0)))
    swarm = swarm_of(graph, seed, world, deadline_s=1e6)
    started = sum(body.vectors["x"][0] for body in swarm.bodies)
    swarm.run()
    moved = sum(u[0] for body in swarm.bodies for u in body.updates)
    assert sum(body.vectors["x"][0] for body in swarm.bodies) == started + moved
    assert [len(body.updates) for body in swarm.bodies] == [STEPS] * graph[1]


def test_two_peers_are_exact_all_reduce() -> None:
    """Whoever is trained first waits for the other: both models are always the mean."""
    swarm = swarm_of(("chain", 2), 5, World()).run()
    assert swarm.models[0] == swarm.models[1]
    assert {a.counted for node in swarm.nodes for a in node.history} == {2}


@settings(max_examples=20)
@given(graphs, st.integers(0, 2**32), st.booleans(), st.booleans())
def test_no_fault_hangs_a_swarm(
    graph: tuple[str, int], seed: int, known: bool, ordered: bool
) -> None:
    """Delays beyond deadlines, losses, duplicates, overtaking; averages are of both in full."""
    link = SeededLink(seed, delay_s=(0.001, 3.0), drop=0.3, known=known, duplicate=0.2)
    world = World(link, cancels=ordered, ordered=ordered)
    swarm = swarm_of(graph, seed, world, curvature=0, deadline_s=2.0)
    for body in swarm.bodies:
        body.vectors.registers["x"] = (F(1),)
    swarm.run()
    assert {x[0] for models in swarm.models for x in models} == {F(1)}
    assert [len(node.history) for node in swarm.nodes] == [STEPS] * graph[1]


def test_with_nobody_to_talk_to_it_goes_on_alone() -> None:
    lost = LosingLink(lambda *_: True, known=False)
    swarm = swarm_of(("chain", 2), 3, World(lost)).run()
    assert {a.counted for node in swarm.nodes for a in node.history} == {1}
    assert swarm.world.now < 1000


def test_edges_are_drawn_evenly() -> None:
    """ "an edge (i, j) is drawn uniformly": on a ring each of six edges about as often."""
    swarm = ExactSwarm(
        "swarmsgd",
        views(graph=build_graph("ring", 6)),
        Run(300, seed=1),
        Problem([(F(k),) for k in range(6)], [(F(0),)] * 6, curvature=(F(0),)),
        options={"blocking": True},
        duration_s=lambda i, step: random.Random(f"{i} {step}").expovariate(1.0),
    )
    exchanges = [(i, j) for i in range(6) for j in (i - 1, i + 1)]
    called: dict[tuple[int, int], int] = dict.fromkeys([(i, j % 6) for i, j in exchanges], 0)

    def count(sender: str, to: str, head: Head) -> bool:
        called[int(sender[5:]), int(to[5:])] += head.kind is Kind.REPLY
        return False

    swarm.world._link = LosingLink(count)
    swarm.run()
    edges = [called[i, (i + 1) % 6] + called[(i + 1) % 6, i] for i in range(6)]
    assert sum(edges) > 6 * 300 / 2 * 0.9
    assert min(edges) > 0.7 * sum(edges) / 6


@pytest.mark.parametrize("mean", [1, 3])
def test_the_number_of_local_steps_may_be_geometric(mean: int) -> None:
    """ "a geometric random variable with mean H": support 1, 2, ..., and numbers without gaps."""
    numbers: list[range] = []
    peer = BlockingSwarmSGD(Run(4000, local_steps=mean, seed=2), Options(geometric=True))
    effects = peer.handle(NewView(View(Epoch(1, 1), 0, "a", {"a": 1})), 0.0)
    while trains := [effect for effect in effects if isinstance(effect, Train)]:
        assert trains[0].local_steps is not None
        numbers.append(trains[0].local_steps)
        effects = peer.handle(Trained(trains[0].step, 1), 0.0)
    assert all(a.stop == b.start for a, b in pairwise(numbers))
    counts = [len(steps) for steps in numbers]
    assert min(counts) == 1
    assert sum(counts) / len(counts) == pytest.approx(mean, rel=0.08)
    ones = sum(count == 1 for count in counts) / len(counts)
    assert ones == pytest.approx(1 / mean, rel=0.1)


# --- one peer, event by event ---------------------------------------------------------------------

DEADLINE_S = 10.0
X = Reg("x")


def view(number: int = 1, members: str = "abcd", others: str = "ac") -> View:
    alive = dict.fromkeys(members, 1)
    return View(Epoch(1, number), 0, "b", alive, neighbours=tuple(others))


def training(others: str = "ac", steps: int = 5) -> BlockingSwarmSGD:
    peer = BlockingSwarmSGD(Run(steps, deadline_s=DEADLINE_S))
    assert peer.handle(NewView(view(others=others)), 0.0) == [Train(0)]
    return peer


def head(sender: str, kind: Kind, exchange: int = 1, **fields: object) -> Head:
    made = Head(sender, 1, Epoch(1, 1), 0, kind, count=1, exchange=exchange)
    return replace(made, **fields)  # type: ignore[arg-type]


def whole(message: Head) -> Received:
    return Received(message, (Message(message),))


def sends(effects: list[Effect]) -> list[tuple[str, Kind]]:
    return [(effect.to, effect.head.kind) for effect in effects if isinstance(effect, Send)]


def mean_with(message: Head) -> Set:
    return Set(X, Lin(((1, X), (1, Message(message))), 2))


def test_an_offer_is_held_until_the_partner_is_trained() -> None:
    peer = training()
    offer = head("a", Kind.OFFER)
    assert peer.handle(whole(offer), 0.5) == []
    assert peer.admit(head("c", Kind.OFFER)) is Verdict.BUSY
    assert peer.admit(offer) is Verdict.DUPLICATE
    effects = peer.handle(Trained(0, 1), 1.0)
    assert sends(effects) == [("a", Kind.REPLY)]
    reply = effects[0]
    assert isinstance(reply, Send)
    effects = peer.handle(SendDone("a", reply.head, Verdict.ACCEPTED), 1.2)
    assert effects == [mean_with(offer), Averaged(0, 2, 4, 1, 0, 0, waited_s=1.2 - 1.0), Train(1)]


def test_a_partner_whose_reply_is_refused_calls_somebody_itself() -> None:
    """The initiator has given up: neither averages, and the step is not over."""
    peer = training()
    peer.handle(whole(head("a", Kind.OFFER)), 0.5)
    (reply,) = peer.handle(Trained(0, 1), 1.0)
    assert isinstance(reply, Send)
    effects = peer.handle(SendDone("a", reply.head, Verdict.STALE_STEP), 1.2)
    assert [kind for _, kind in sends(effects)] == [Kind.OFFER]
    assert peer.step == 0


def test_an_initiator_blocks_and_averages_with_the_reply() -> None:
    peer = training(others="c")
    (offer,) = peer.handle(Trained(0, 1), 1.0)
    assert isinstance(offer, Send)
    assert peer.handle(SendDone("c", offer.head, Verdict.ACCEPTED), 1.1) == []
    reply = head("c", Kind.REPLY)
    effects = peer.handle(whole(reply), 5.0)
    assert effects[1:] == [mean_with(reply), Averaged(0, 2, 4, 1, 0, 0, waited_s=4.0), Train(1)]
    assert peer.outcomes == {Outcome.BOTH: 1}


def test_a_peer_with_its_own_offer_out_is_busy_even_for_the_one_it_called() -> None:
    """ "In the blocking form a peer with its own offer out answers BUSY.\""""
    peer = training(others="a")
    peer.handle(Trained(0, 1), 1.0)
    assert peer.admit(head("a", Kind.OFFER)) is Verdict.BUSY


def test_while_it_pauses_it_answers_at_once() -> None:
    peer = training(others="a")
    (offer,) = peer.handle(Trained(0, 1), 1.0)
    assert isinstance(offer, Send)
    peer.handle(SendDone("a", offer.head, Verdict.BUSY), 1.1)
    assert sends(peer.handle(whole(head("a", Kind.OFFER)), 1.105)) == [("a", Kind.REPLY)]


def test_a_held_offer_ends_with_its_initiator() -> None:
    peer = training()
    peer.handle(whole(head("a", Kind.OFFER)), 0.5)
    assert peer.handle(Gone("a"), 0.6) == []
    assert [kind for _, kind in sends(peer.handle(Trained(0, 1), 1.0))] == [Kind.OFFER]
    peer = training()
    peer.handle(whole(head("a", Kind.OFFER)), 0.5)
    assert peer.handle(NewView(view(number=2, members="bcd", others="c")), 0.6) == []
    assert sends(peer.handle(Trained(0, 1), 1.0)) == [("c", Kind.OFFER)]


def test_a_reply_without_answer_counts_as_arrived() -> None:
    peer = training()
    peer.handle(whole(head("a", Kind.OFFER)), 0.5)
    peer.handle(Trained(0, 1), 1.0)
    effects = peer.handle(Tick(), 1.0 + DEADLINE_S)
    assert mean_with(head("a", Kind.OFFER)) in effects
    assert Train(1) in effects


def test_a_finished_peer_still_averages_with_those_that_call() -> None:
    peer = training(others="a", steps=1)
    peer.handle(Trained(0, 1), 1.0)
    assert peer.handle(whole(head("a", Kind.REPLY)), 1.5)[-1] == Finished(1)
    (reply,) = peer.handle(whole(head("a", Kind.OFFER)), 2.0)
    assert isinstance(reply, Send)
    effects = peer.handle(SendDone("a", reply.head, Verdict.ACCEPTED), 2.1)
    assert effects == [mean_with(head("a", Kind.OFFER))]


def test_a_neighbour_that_ended_is_not_called_again_in_this_step() -> None:
    peer = training(others="a")
    (offer,) = peer.handle(Trained(0, 1), 1.0)
    assert isinstance(offer, Send)
    effects = peer.handle(SendDone("a", offer.head, Verdict.STALE_STEP), 1.1)
    assert effects[-1] == Train(1)
