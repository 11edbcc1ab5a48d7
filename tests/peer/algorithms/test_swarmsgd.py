"""Non-blocking SwarmSGD: whole swarms over fractions, then one peer's exchanges event by event."""

from __future__ import annotations

import random
from dataclasses import replace
from fractions import Fraction as F

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.graphs import Graph, build_graph
from peer.algorithms.core import (
    LIVE,
    Averaged,
    Cancel,
    Effect,
    Epoch,
    Event,
    Finished,
    Gone,
    Head,
    Kind,
    Message,
    NewView,
    PeerId,
    Received,
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
from peer.algorithms.swarmsgd import COPY, SwarmSGD
from peer.simulator.event_log import Log, Logged
from peer.simulator.exact import ExactSwarm, Problem, views
from peer.simulator.links import LosingLink, SeededLink
from peer.simulator.world import World

STEPS = 8


class Watched:
    """A swarm whose complete exchanges are written down as (initiator, partner or None)."""

    def __init__(self, graph: Graph, seed: int, world: World, **options: object) -> None:
        draw = random.Random(seed)
        self.exchanges: list[tuple[int, int | None]] = []
        self.starts = [F(draw.randrange(-9, 10)) for _ in range(graph.n)]
        self.targets = [F(draw.randrange(-9, 10)) for _ in range(graph.n)]
        problem = Problem([(x,) for x in self.starts], [(x,) for x in self.targets])
        self.swarm = ExactSwarm(
            "swarmsgd",
            views(graph=graph),
            Run(STEPS, seed=seed, **options),  # type: ignore[arg-type]
            problem,
            duration_s=lambda i, step: draw.choice([0.5, 1.0, 4.0]),  # noqa: ARG005
            world=world,
            wrap=lambda peer, algorithm: Logged(algorithm, self._log_of(peer)),
        ).run()
        self.peers = [peer for peer in self.swarm.algorithms if isinstance(peer, SwarmSGD)]

    def _log_of(self, peer: PeerId) -> Log:
        def log(now: float, event: Event, effects: list[Effect]) -> None:  # noqa: ARG001
            if any(isinstance(effect, Averaged) for effect in effects):
                partner = int(event.head.sender[5:]) if isinstance(event, Received) else None
                self.exchanges.append((int(peer[5:]), partner))

        return log

    def register(self, name: str) -> list[F]:
        return [body.vectors[name][0] for body in self.swarm.bodies]


def by_the_rules(watched: Watched) -> tuple[list[F], list[F]]:
    """X and x, by the five lines of the rules, in the order in which exchanges were complete."""
    x, x_hat = list(watched.starts), list(watched.starts)
    for i, j in watched.exchanges:
        delta = (watched.targets[i] - x_hat[i]) / 2  # one step at rate 1/2 from where it started
        avg = (x[i] + x[j]) / 2 if j is not None else x[i]
        if j is not None:
            x[j] = avg
        x[i] = avg + delta
        x_hat[i] = x[i]
    return x, x_hat


graphs = st.sampled_from([("ring", 6), ("complete", 5), ("star", 4), ("chain", 2)])


@settings(max_examples=25)
@given(graphs, st.integers(0, 2**32))
def test_swarms_follow_the_rules(graph: tuple[str, int], seed: int) -> None:
    """X_j <- avg, X_i <- avg + delta_i, X_hat_i <- X_i, for each exchange, and nothing else."""
    world = World(SeededLink(seed, delay_s=(0.001, 3.0)))
    watched = Watched(build_graph(*graph), seed, world, deadline_s=1e6)
    copies, started_from = by_the_rules(watched)
    assert watched.register(COPY.name) == copies
    assert watched.register(LIVE) == started_from
    assert all(peer.outcomes[Outcome.BOTH] == STEPS for peer in watched.peers)
    assert all(peer.outcomes[Outcome.PARTNER_ONLY] == 0 for peer in watched.peers)
    assert sum(peer.visits[Outcome.BOTH] for peer in watched.peers) == STEPS * len(watched.peers)
    assert all(peer.visits[Outcome.PARTNER_ONLY] == 0 for peer in watched.peers)


@settings(max_examples=15)
@given(graphs, st.integers(0, 2**32))
def test_the_mean_moves_by_the_movements_of_initiators(graph: tuple[str, int], seed: int) -> None:
    """The mean of all X moves by delta_i / n and nothing else: also where offers are lost."""
    link = LosingLink(lambda _, __, head: head.kind is Kind.OFFER and head.exchange % 3 == 0)
    watched = Watched(build_graph(*graph), seed, World(link))
    moved = sum(u[0] for body in watched.swarm.bodies for u in body.updates)
    assert sum(watched.register(COPY.name)) == sum(watched.starts) + moved


@settings(max_examples=25)
@given(graphs, st.integers(0, 2**32), st.booleans(), st.booleans())
def test_no_fault_hangs_a_swarm(
    graph: tuple[str, int], seed: int, known: bool, ordered: bool
) -> None:
    """Delays beyond deadlines, losses of every kind of message, duplicates, overtaking."""
    link = SeededLink(seed, delay_s=(0.001, 3.0), drop=0.3, known=known, duplicate=0.2)
    world = World(link, cancels=ordered, ordered=ordered)
    watched = Watched(build_graph(*graph), seed, world, deadline_s=2.0)
    assert [len(node.history) for node in watched.swarm.nodes] == [STEPS] * len(watched.peers)


def test_alone_it_is_gradient_descent() -> None:
    watched = Watched(build_graph("chain", 1), 3, World())
    assert watched.exchanges == [(0, None)] * STEPS
    (start,), (target,) = watched.starts, watched.targets
    assert watched.register(LIVE) == [target + (start - target) / 2**STEPS]
    assert [a.expected for a in watched.swarm.nodes[0].history] == [0] * STEPS


def test_with_nobody_to_talk_to_it_goes_on_alone() -> None:
    """All messages are lost without a word: three failures, then ever rarer tries."""
    watched = Watched(build_graph("chain", 2), 3, World(LosingLink(lambda *_: True, known=False)))
    assert {partner for _, partner in watched.exchanges} == {None}
    assert watched.swarm.world.now < 1000


def test_partners_are_drawn_evenly() -> None:
    watched = Watched(build_graph("complete", 5), 1, World(), deadline_s=1e6)
    assert {i for i, _ in watched.exchanges} == {j for _, j in watched.exchanges} == set(range(5))


def test_float_buffers_are_averaged_plainly() -> None:
    """Coordinate 1 stands for one: X_i becomes (x_i + X_j) / 2, X_j the mean of the two copies."""
    link = LosingLink(lambda sender, _, head: sender == "peer-1" and head.kind is Kind.OFFER)
    swarm = ExactSwarm(
        "swarmsgd",
        views(graph=build_graph("chain", 2)),
        Run(1),
        Problem([(F(0), F(4))] * 2, [(F(8), F(12))] * 2, parameters_end=1),
        duration_s=lambda i, step: 1.0 + i,  # noqa: ARG005
        world=World(link),
    )
    swarm.world.run(lambda: swarm.nodes[0].finished_at is not None)
    # Peer 0 trained to (4, 8). Parameters: avg 0, delta 4. Buffers: (8 + 4) / 2.
    assert swarm.bodies[0].vectors[COPY.name] == (F(4), F(6))
    swarm.world.run(lambda: swarm.world.now > 1.5)
    assert swarm.bodies[1].vectors[COPY.name] == (F(0), F(4))


# --- one peer, event by event ---------------------------------------------------------------------

DEADLINE_S = 10.0


def view(me: str = "b", number: int = 1, others: str = "ac") -> View:
    members = dict.fromkeys("abcd", 1)
    return View(Epoch(1, number), 0, me, members, neighbours=tuple(others))


def training(me: str = "b", others: str = "ac", steps: int = 5) -> SwarmSGD:
    peer = SwarmSGD(Run(steps, deadline_s=DEADLINE_S))
    peer.handle(NewView(view(me, others=others)), 0.0)
    return peer


def test_a_newcomer_begins_at_its_own_step() -> None:
    """Steps are each peer's own: were they taken over from the view, each newcomer would push the
    next one's further ahead."""
    peer = SwarmSGD(Run(5, deadline_s=DEADLINE_S, start_step=3))
    effects = peer.handle(NewView(replace(view(), effective_step=4000)), 0.0)
    assert effects[-1] == Train(3)


def calling(me: str = "b", others: str = "ac") -> tuple[SwarmSGD, Send]:
    """A peer that has, at time 1, made its first call."""
    peer = training(me, others)
    (offer,) = peer.handle(Trained(0, 1), 1.0)
    assert isinstance(offer, Send)
    assert offer.head.kind is Kind.OFFER
    return peer, offer


def head(sender: str, kind: Kind, exchange: int = 1, **fields: object) -> Head:
    made = Head(sender, 1, Epoch(1, 1), 0, kind, count=1, exchange=exchange)
    return replace(made, **fields)  # type: ignore[arg-type]


def whole(message: Head) -> Received:
    return Received(message, (Message(message),))


def visited(by: str = "a") -> tuple[SwarmSGD, Head]:
    """A peer that has answered an offer at time 0.5, and the head of its reply."""
    peer = training()
    (reply,) = peer.handle(whole(head(by, Kind.OFFER)), 0.5)
    assert isinstance(reply, Send)
    assert (reply.to, reply.head.kind, reply.head.exchange) == (by, Kind.REPLY, 1)
    return peer, reply.head


def registers_set(effects: list[Effect]) -> list[str]:
    return [effect.reg.name for effect in effects if isinstance(effect, Set)]


def calls(effects: list[Effect]) -> list[str]:
    return [e.to for e in effects if isinstance(e, Send) and e.head.kind is Kind.OFFER]


def test_an_initiator_averages_after_a_complete_reply() -> None:
    peer, offer = calling()
    assert peer.handle(SendDone(offer.to, offer.head, Verdict.ACCEPTED), 1.1) == []
    effects = peer.handle(whole(head(offer.to, Kind.REPLY)), 1.5)
    assert registers_set(effects) == ["start", "communication", "start", "x"]
    assert effects[-2] == Averaged(0, 2, 4, expected=1, missed=0, late=0, waited_s=0.5)
    assert effects[-1] == Train(1)
    assert peer.outcomes == {Outcome.BOTH: 1}
    assert peer.exchanges == {("initiator", "both"): 1}


def test_the_reply_may_come_before_the_answer_to_the_offer() -> None:
    peer, offer = calling()
    peer.handle(whole(head(offer.to, Kind.REPLY)), 1.5)
    assert peer.handle(SendDone(offer.to, offer.head, Verdict.ACCEPTED), 1.6) == []
    assert peer.outcomes == {Outcome.BOTH: 1}


@pytest.mark.parametrize(
    ("verdict", "outcome"),
    [
        (Verdict.ACCEPTED, Outcome.BOTH),
        (Verdict.DUPLICATE, Outcome.BOTH),
        (None, Outcome.PARTNER_ONLY),  # it may have arrived: the initiator must not be the only one
        (Verdict.STALE_STEP, Outcome.NONE),
        (Verdict.EPOCH_BEHIND, Outcome.NONE),
    ],
)
def test_a_partner_averages_once_its_reply_is_sent(
    verdict: Verdict | None, outcome: Outcome
) -> None:
    peer, reply = visited()
    effects = peer.handle(SendDone("a", reply, verdict), 0.7)
    assert registers_set(effects) == ([] if outcome is Outcome.NONE else ["communication"])
    assert peer.handle(SendDone("a", reply, verdict), 0.8) == []  # once
    assert peer.visits == {outcome: 1}
    assert peer.exchanges == {("partner", outcome.value): 1}


def test_a_partners_own_computation_is_untouched() -> None:
    peer, reply = visited()
    (averaged,) = peer.handle(SendDone("a", reply, Verdict.ACCEPTED), 0.7)
    assert isinstance(averaged, Set)
    assert {getattr(ref, "name", None) for _, ref in averaged.lin.terms} == {COPY.name, None}
    assert calls(peer.handle(Trained(0, 1), 1.0)) != []


def test_a_partner_calls_nobody_until_the_visit_is_over() -> None:
    peer, reply = visited()
    assert peer.handle(Trained(0, 1), 1.0) == []
    effects = peer.handle(SendDone("a", reply, Verdict.ACCEPTED), 1.5)
    assert registers_set(effects) == ["communication"]
    assert len(calls(effects)) == 1


def test_a_visit_ends_at_its_deadline() -> None:
    peer, reply = visited()
    assert peer.next_deadline() == 0.5 + DEADLINE_S
    effects = peer.handle(Tick(), 0.5 + DEADLINE_S)
    assert effects[0] == Cancel("a", reply)
    assert registers_set(effects) == ["communication"]
    assert peer.next_deadline() is None
    assert peer.visits == {Outcome.PARTNER_ONLY: 1}


def test_a_caller_answers_others_busy() -> None:
    peer, offer = calling()
    (third,) = {"a", "c"} - {offer.to}
    assert peer.admit(head(third, Kind.OFFER)) is Verdict.BUSY


def test_a_partner_answers_others_busy() -> None:
    assert visited(by="a")[0].admit(head("c", Kind.OFFER)) is Verdict.BUSY


def test_of_two_offers_admitted_together_the_second_is_declined() -> None:
    """Both headers came before either payload was in: an empty reply says BUSY."""
    peer = training()
    assert peer.admit(head("a", Kind.OFFER)) is peer.admit(head("c", Kind.OFFER))
    peer.handle(whole(head("a", Kind.OFFER)), 0.5)
    effects = peer.handle(whole(head("c", Kind.OFFER)), 0.6)
    (empty,) = (effect for effect in effects if isinstance(effect, Send))
    assert (empty.to, empty.head.kind, empty.lins) == ("c", Kind.REPLY, ())
    assert (empty.head.lost, empty.head.count) == (True, 0)
    assert peer.visits == {Outcome.NONE: 1}


def test_when_two_call_each_other_the_lower_ones_call_stands() -> None:
    """The higher one drops its own call, the lower one answers BUSY."""
    higher, dropped = calling("b", others="a")
    assert higher.admit(head("a", Kind.OFFER)) is Verdict.ACCEPTED
    effects = higher.handle(whole(head("a", Kind.OFFER)), 1.2)
    assert effects[0] == Cancel("a", dropped.head)
    assert [effect.head.kind for effect in effects if isinstance(effect, Send)] == [Kind.REPLY]
    assert higher.handle(SendDone("a", dropped.head, Verdict.BUSY), 1.3) == []
    lower, _ = calling("b", others="c")
    assert lower.admit(head("c", Kind.OFFER)) is Verdict.BUSY


def test_peers_are_ordered_by_their_numbers() -> None:
    """peer-10 comes after peer-2, whose call therefore stands."""
    peer = SwarmSGD(Run(5))
    members = {"peer-2": 1, "peer-10": 1}
    peer.handle(NewView(View(Epoch(1, 1), 0, "peer-2", members, neighbours=("peer-10",))), 0.0)
    peer.handle(Trained(0, 1), 1.0)
    assert peer.admit(head("peer-10", Kind.OFFER)) is Verdict.BUSY


@pytest.mark.parametrize(
    ("verdict", "outcome"), [(Verdict.BUSY, Outcome.NONE), (None, Outcome.NONE)]
)
def test_a_call_that_fails_is_followed_by_another(
    verdict: Verdict | None, outcome: Outcome
) -> None:
    peer, offer = calling()
    effects = peer.handle(SendDone(offer.to, offer.head, verdict), 1.1)
    assert calls(effects) == list({"a", "c"} - {offer.to})
    assert peer.outcomes == {outcome: 1}


@pytest.mark.parametrize(
    ("count", "outcome"),
    [(0, Outcome.NONE), (1, Outcome.PARTNER_ONLY)],  # declined; lost on its way
)
def test_without_a_reply_the_partner_may_be_the_only_one(count: int, outcome: Outcome) -> None:
    peer, offer = calling()
    peer.handle(SendDone(offer.to, offer.head, Verdict.ACCEPTED), 1.1)
    reply = head(offer.to, Kind.REPLY, count=count, lost=True)
    assert len(calls(peer.handle(Gone(offer.to, reply), 1.2))) == 1
    assert peer.outcomes == {outcome: 1}


@pytest.mark.parametrize(
    ("verdict", "outcome"), [(Verdict.ACCEPTED, Outcome.PARTNER_ONLY), (None, Outcome.NONE)]
)
def test_a_call_that_broke_is_over_at_once(verdict: Verdict | None, outcome: Outcome) -> None:
    """What the initiator knows is whether its offer arrived."""
    peer, offer = calling()
    if verdict:
        peer.handle(SendDone(offer.to, offer.head, verdict), 1.1)
    effects = peer.handle(Gone("b", offer.head), 1.2)
    assert effects[0] == Cancel(offer.to, offer.head)
    assert calls(effects) == list({"a", "c"} - {offer.to})
    assert peer.outcomes == {outcome: 1}
    assert peer.handle(Gone("b", offer.head), 1.3) == []  # of a call that is over


def test_when_the_call_breaks_before_the_reply_is_sent_neither_averages() -> None:
    peer, reply = visited()
    assert peer.handle(Gone("a", head("a", Kind.OFFER)), 0.7) == []
    assert peer.handle(SendDone("a", reply, None), 0.8) == []
    assert peer.visits == {Outcome.NONE: 1}


def test_a_call_ends_at_its_deadline_and_patience_with_it() -> None:
    peer, offer = calling()
    peer.handle(SendDone(offer.to, offer.head, Verdict.ACCEPTED), 1.1)
    assert peer.next_deadline() == 1.0 + DEADLINE_S
    effects = peer.handle(Tick(), 1.0 + DEADLINE_S)
    assert peer.outcomes == {Outcome.PARTNER_ONLY: 1}
    assert registers_set(effects) == ["start", "communication", "start", "x"]  # alone
    (averaged,) = (effect for effect in effects if isinstance(effect, Averaged))
    assert (averaged.counted, averaged.missed) == (1, 1)


def test_when_all_are_busy_it_pauses_and_calls_again() -> None:
    peer, offer = calling(others="c")
    assert calls(peer.handle(SendDone("c", offer.head, Verdict.BUSY), 1.1)) == []
    again = peer.next_deadline()
    assert again is not None
    assert 1.1 < again < 1.2
    assert peer.handle(Tick(), (1.1 + again) / 2) == []
    assert calls(peer.handle(Tick(), again)) == ["c"]


def test_a_lost_offer_is_declined() -> None:
    """An announced loss: the initiator need not wait for a reply."""
    peer = training()
    (empty,) = peer.handle(Gone("a", head("a", Kind.OFFER)), 0.5)
    assert isinstance(empty, Send)
    assert empty.head.lost
    assert peer.next_deadline() is None
    assert peer.admit(head("a", Kind.OFFER)) is Verdict.DUPLICATE


def test_an_unreachable_partner_ends_call_and_visit() -> None:
    peer, offer = calling()
    effects = peer.handle(Gone(offer.to), 1.2)
    assert effects[0] == Cancel(offer.to, offer.head)
    assert calls(effects) == list({"a", "c"} - {offer.to})
    visit, _ = visited()
    assert registers_set(visit.handle(Gone("a"), 0.6)) == ["communication"]
    assert visit.visits == {Outcome.PARTNER_ONLY: 1}


def test_a_new_view_ends_the_call() -> None:
    peer, offer = calling()
    effects = peer.handle(NewView(view(number=2, others="d")), 1.2)
    assert effects[0] == Cancel(offer.to, offer.head)
    assert calls(effects) == ["d"]
    assert peer.handle(NewView(view(number=1)), 1.3) == []  # older


def test_a_new_view_keeps_the_visit_of_a_member() -> None:
    peer, reply = visited()
    assert peer.handle(NewView(view(number=2)), 0.6) == []
    assert registers_set(peer.handle(SendDone("a", reply, Verdict.ACCEPTED), 0.7)) == [
        "communication"
    ]


def test_a_new_view_ends_the_visit_of_one_that_left() -> None:
    peer, _ = visited()
    without_a = replace(view(number=2, others="c"), members={"b": 1, "c": 1})
    assert registers_set(peer.handle(NewView(without_a), 0.6)) == ["communication"]


def test_a_finished_peer_still_answers() -> None:
    peer = training(others="a", steps=1)
    peer.handle(Trained(0, 1), 1.0)
    effects = peer.handle(whole(head("a", Kind.REPLY)), 1.5)
    assert effects[-1] == Finished(1)
    (reply,) = peer.handle(whole(head("a", Kind.OFFER)), 2.0)
    assert isinstance(reply, Send)
    effects = peer.handle(SendDone("a", reply.head, Verdict.ACCEPTED), 2.1)
    assert registers_set(effects) == ["communication"]


@pytest.mark.parametrize(
    ("message", "verdict"),
    [
        (head("a", Kind.OFFER), Verdict.ACCEPTED),
        (head("a", Kind.OFFER, epoch=Epoch(1, 2)), Verdict.EPOCH_AHEAD),
        (head("a", Kind.OFFER, epoch=Epoch(1, 0)), Verdict.EPOCH_BEHIND),
        (head("a", Kind.OFFER, incarnation=2), Verdict.OLD_INCARNATION),
        (head("d", Kind.OFFER), Verdict.NOT_A_NEIGHBOUR),
        (head("a", Kind.RELAY), Verdict.NOT_A_NEIGHBOUR),
        (head("a", Kind.REPLY), Verdict.STALE_STEP),
        (head("a", Kind.OFFER, count=0), Verdict.BAD_COUNT),
        (head("a", Kind.OFFER, count=2), Verdict.BAD_COUNT),
        (head("a", Kind.OFFER, round=1), Verdict.NOT_A_NEIGHBOUR),
    ],
)
def test_messages_are_judged_by_their_header(message: Head, verdict: Verdict) -> None:
    peer = training()
    assert peer.admit(message) is verdict
    if verdict is not Verdict.ACCEPTED:
        (dropped,) = peer.handle(whole(message), 0.5)
        assert not isinstance(dropped, Send)


def test_replies_to_other_calls_are_refused() -> None:
    peer, offer = calling()
    (third,) = {"a", "c"} - {offer.to}
    assert peer.admit(head(offer.to, Kind.REPLY, exchange=2)) is Verdict.STALE_STEP
    assert peer.admit(head(third, Kind.REPLY)) is Verdict.STALE_STEP
    assert peer.admit(head(offer.to, Kind.REPLY)) is Verdict.ACCEPTED


def test_an_offer_is_answered_once() -> None:
    peer, reply = visited()
    assert peer.admit(head("a", Kind.OFFER)) is Verdict.DUPLICATE
    peer.handle(SendDone("a", reply, Verdict.ACCEPTED), 0.6)
    assert peer.admit(head("a", Kind.OFFER)) is Verdict.DUPLICATE
    assert peer.admit(head("a", Kind.OFFER, exchange=2)) is Verdict.ACCEPTED


def test_in_a_new_epoch_numbers_may_start_over() -> None:
    """Of a peer in another life."""
    peer, reply = visited()
    peer.handle(SendDone("a", reply, Verdict.ACCEPTED), 0.6)
    peer.handle(NewView(view(number=2)), 0.7)
    assert peer.admit(head("a", Kind.OFFER, epoch=Epoch(1, 2))) is Verdict.ACCEPTED


def test_before_the_first_view_everything_is_ahead() -> None:
    assert SwarmSGD(Run(1)).admit(head("a", Kind.OFFER)) is Verdict.EPOCH_AHEAD
