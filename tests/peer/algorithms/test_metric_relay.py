"""The mean of metrics: exact for one evaluation, nobody in it twice, and it says who is missing.

Peer i weighs 2^i. So the weight of a sum says which peers are in it, each at most once: a set of
peers as an integer.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from fractions import Fraction as F

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.trees import Tree
from peer.algorithms.core import Drop, Epoch, Head, Kind, Verdict
from peer.algorithms.metric_relay import KEPT, LARGEST, Effect, MetricRelay, Sum, SwarmMean, Tell
from peer.simulator.exact import views
from tests.shapes import trees

CHAIN = Tree(3, ((0, 1), (1, 2)))


def value(i: int, step: int) -> F:
    return F(7 * i + 3 * step * step, 5)


def measurement(i: int, step: int) -> dict[str, tuple[F, F]]:
    return {"loss": (value(i, step), F(1 << i))}


def peers_in(mean: SwarmMean) -> list[int]:
    """Who is in a sum; fails if somebody is twice."""
    weight = int(mean.sums["loss"].weight)
    peers = [i for i in range(weight.bit_length()) if weight >> i & 1]
    assert len(peers) == mean.sums["loss"].peers == mean.peers
    return peers


def assert_exact(mean: SwarmMean | None, step: int, peers: Iterable[int]) -> None:
    assert mean is not None
    chosen = list(peers)
    assert (mean.step, peers_in(mean)) == (step, chosen)
    total = sum((value(i, step) * (1 << i) for i in chosen), start=F(0))
    assert mean.mean("loss") == total / sum(1 << i for i in chosen)


class Swarm:
    """Relays on a tree, and the messages between them."""

    def __init__(self, tree: Tree, is_due: Callable[[int], bool] = lambda _: True) -> None:
        self.tree = tree
        self.relays = [MetricRelay(is_due) for _ in range(tree.n)]
        self.under_way: list[Tell] = []
        self.sent: list[Tell] = []
        self.publish(tree, 1)

    def publish(self, tree: Tree, number: int) -> None:
        """The first peers get a new tree."""
        for view, relay in zip(views([tree], epoch=Epoch(1, number)), self.relays, strict=False):
            self.post(relay.viewed(view))

    def post(self, effects: Iterable[Effect]) -> None:
        tells = [effect for effect in effects if isinstance(effect, Tell)]
        self.under_way += tells
        self.sent += tells

    def evaluate(self, i: int, step: int) -> None:
        self.post(self.relays[i].measured(step, measurement(i, step)))

    def deliver(self, tell: Tell, *, lost: bool = False) -> Verdict:
        relay = self.relays[int(tell.to.removeprefix("peer-"))]
        verdict, effects = relay.received(replace(tell.head, lost=lost), tell.sums)
        self.post(effects)
        return verdict

    def round(self) -> None:
        """All that is under way arrives."""
        now, self.under_way = self.under_way, []
        for tell in now:
            assert self.deliver(tell) is Verdict.ACCEPTED

    def run(self, draw: random.Random, *, twice: bool = False) -> None:
        """All arrives in any order, some of it twice."""
        while self.under_way:
            tell = self.under_way.pop(draw.randrange(len(self.under_way)))
            self.deliver(tell)
            if twice and draw.random() < 0.3:
                self.deliver(tell)

    def lose(self, lost: set[tuple[str, str]], *, announced: bool) -> None:
        """All arrives but what goes over these edges."""
        while self.under_way:
            tell = self.under_way.pop()
            if (tell.head.sender, tell.to) not in lost:
                self.deliver(tell)
            elif announced:
                self.deliver(tell, lost=True)


def edges_of(draw: st.DataObject, tree: Tree) -> set[tuple[str, str]]:
    """Some of the directed edges."""
    ends = [e for u, v in tree.edges for e in ((u, v), (v, u))]
    chosen = draw.draw(st.sets(st.sampled_from(ends))) if ends else set()
    return {(f"peer-{u}", f"peer-{v}") for u, v in chosen}


def heard_by(tree: Tree, lost: set[tuple[str, str]], i: int) -> list[int]:
    """From whom word gets to i if nothing passes these edges."""
    near = {k: [*tree.behind(k)] for k in range(tree.n)}
    seen, front = {i}, [i]
    while front:
        j = front.pop()
        for k in near[j]:
            if k not in seen and (f"peer-{k}", f"peer-{j}") not in lost:
                seen.add(k)
                front.append(k)
    return sorted(seen)


# --- without losses -----------------------------------------------------------------------------


@given(trees())
def test_after_diameter_rounds_all_know_the_mean_of_that_evaluation(tree: Tree) -> None:
    swarm = Swarm(tree)
    for step in (10, 20):
        swarm.sent = []
        for i in range(tree.n):
            swarm.evaluate(i, step)
        for _ in range(tree.diameter):
            swarm.round()
        for relay in swarm.relays:
            assert_exact(relay.known, step, range(tree.n))
            assert relay.is_settled(step)
        assert not swarm.under_way
        assert len(swarm.sent) == 2 * (tree.n - 1)  # one message for each edge and direction


@settings(max_examples=60)
@given(trees(), st.integers(0, 2**32))
def test_messages_may_come_in_any_order_and_twice_while_peers_go_at_their_own_pace(
    tree: Tree, seed: int
) -> None:
    swarm, draw = Swarm(tree), random.Random(seed)
    steps = [list(range(1, 5)) for _ in range(tree.n)]
    while any(steps):
        i = draw.choice([i for i in range(tree.n) if steps[i]])
        swarm.evaluate(i, steps[i].pop(0))
        if draw.random() < 0.5:
            swarm.run(draw, twice=True)
        for relay in swarm.relays:
            if relay.known:
                assert_exact(relay.known, relay.known.step, peers_in(relay.known))
    swarm.run(draw, twice=True)
    for relay in swarm.relays:
        assert_exact(relay.known, 4, range(tree.n))


def test_values_by_hand() -> None:
    """0 - 1 - 2 with accuracies 1/2, 1/4, 1 on 10, 20, 30 samples: 40/60."""
    swarm = Swarm(CHAIN)
    given = [(F(1, 2), F(10)), (F(1, 4), F(20)), (F(1), F(30))]
    for relay, accuracy in zip(swarm.relays, given, strict=True):
        swarm.post(relay.measured(5, {"accuracy": accuracy}))
    first = {(t.head.sender, t.to): t.sums["accuracy"] for t in swarm.under_way}
    assert first == {("peer-0", "peer-1"): Sum(5, 10, 1), ("peer-2", "peer-1"): Sum(30, 30, 1)}
    swarm.round()
    second = {(t.head.sender, t.to): t.sums["accuracy"] for t in swarm.under_way}
    assert second == {("peer-1", "peer-0"): Sum(35, 50, 2), ("peer-1", "peer-2"): Sum(10, 30, 2)}
    swarm.round()
    for relay in swarm.relays:
        assert relay.known == SwarmMean(5, 3, {"accuracy": Sum(40, 60, 3)})
        assert relay.known.mean("accuracy") == F(2, 3)
        assert relay.known.mean("loss") is None


def test_a_peer_without_data_counts_without_weight_and_one_without_a_value_not() -> None:
    swarm = Swarm(CHAIN)
    swarm.post(swarm.relays[0].measured(5, {"loss": (F(3), F(0)), "accuracy": (F(1), F(1))}))
    swarm.post(swarm.relays[1].measured(5, {"loss": (F(6), F(2)), "accuracy": (F(0), F(1))}))
    swarm.post(swarm.relays[2].measured(5, {"accuracy": (F(1), F(1))}))  # its loss was not finite
    swarm.run(random.Random(0))
    known = swarm.relays[0].known
    assert known == SwarmMean(5, 3, {"loss": Sum(12, 2, 2), "accuracy": Sum(2, 3, 3)})
    assert known.mean("loss") == 6
    alone = Swarm(Tree(1, ()))
    alone.post(alone.relays[0].measured(5, {"loss": (F(3), F(0))}))
    assert alone.relays[0].known == SwarmMean(5, 1, {"loss": Sum(0, 0, 1)})
    assert alone.relays[0].known.mean("loss") is None


# --- losses and absences --------------------------------------------------------------------------


@given(trees(), st.data())
def test_an_announced_loss_is_missing_at_once_and_the_count_tells(
    tree: Tree, data: st.DataObject
) -> None:
    swarm, lost = Swarm(tree), edges_of(data, tree)
    for i in range(tree.n):
        swarm.evaluate(i, 10)
    swarm.lose(lost, announced=True)
    for i, relay in enumerate(swarm.relays):
        assert_exact(relay.known, 10, heard_by(tree, lost, i))
        assert relay.is_settled(10)


@given(trees(), st.data())
def test_a_silent_loss_is_waited_for_during_diameter_more_evaluations(
    tree: Tree, data: st.DataObject
) -> None:
    """ "age at most the diameter", and not a word of what has come is left out."""
    swarm, lost = Swarm(tree), edges_of(data, tree)
    for step in range(2 * tree.diameter + 2):
        for i in range(tree.n):
            swarm.evaluate(i, step)
        swarm.lose(lost, announced=False)
        for i, relay in enumerate(swarm.relays):
            if step >= tree.diameter:
                assert relay.known is not None
                assert relay.known.step >= step - tree.diameter
                assert_exact(relay.known, relay.known.step, heard_by(tree, lost, i))


@given(trees(), st.data())
def test_who_waits_no_more_knows_all_that_got_through(tree: Tree, data: st.DataObject) -> None:
    swarm, lost = Swarm(tree), edges_of(data, tree)
    for i in range(tree.n):
        swarm.evaluate(i, 10)
    swarm.lose(lost, announced=False)
    for relay in swarm.relays:
        swarm.post(relay.close())
    swarm.lose(lost, announced=False)
    for i, relay in enumerate(swarm.relays):
        assert_exact(relay.known, 10, heard_by(tree, lost, i))


def test_what_comes_late_is_added_and_told_again() -> None:
    swarm = Swarm(CHAIN)
    swarm.evaluate(1, 10)
    swarm.post(swarm.relays[1].gone("peer-2"))
    swarm.evaluate(0, 10)
    swarm.run(random.Random(0))
    assert_exact(swarm.relays[0].known, 10, [0, 1])
    swarm.evaluate(2, 10)
    swarm.run(random.Random(0))
    for relay in swarm.relays:
        assert_exact(relay.known, 10, [0, 1, 2])
    counts = [t.head.count for t in swarm.sent if t.to == "peer-0"]
    assert counts == [1, 2]  # peer-1 alone, then with peer-2: the second takes the first's place


def test_a_peer_that_skips_an_evaluation_passes_the_others_on() -> None:
    swarm = Swarm(CHAIN)
    swarm.evaluate(0, 10)
    swarm.evaluate(2, 10)
    swarm.evaluate(1, 5)
    swarm.round()
    assert not [t for t in swarm.under_way if t.head.step == 10]  # its own may yet come
    swarm.evaluate(1, 20)
    swarm.run(random.Random(0))
    for relay in swarm.relays[::2]:
        assert_exact(relay.known, 10, [0, 2])


def test_an_unreachable_peer_is_waited_for_again_once_it_is_heard_of() -> None:
    swarm = Swarm(CHAIN)
    for i in (0, 1):
        swarm.evaluate(i, 10)
    swarm.run(random.Random(0))
    assert swarm.relays[0].known is None
    swarm.post(swarm.relays[1].gone("peer-2"))
    swarm.run(random.Random(0))
    assert_exact(swarm.relays[0].known, 10, [0, 1])
    swarm.evaluate(2, 20)
    swarm.run(random.Random(0))
    for i in (0, 1):
        swarm.evaluate(i, 30)
    swarm.run(random.Random(0))
    assert not swarm.relays[1].is_settled(30)


# --- epochs ------------------------------------------------------------------------------------


@given(trees(), st.integers(0, 20), st.integers(0, 2**32))
def test_a_new_tree_begins_anew_with_what_was_measured_last(
    tree: Tree, delivered: int, seed: int
) -> None:
    """Whatever had arrived before, and of the old epoch arrives after."""
    swarm, draw = Swarm(tree), random.Random(seed)
    for i in range(tree.n):
        swarm.evaluate(i, 10)
    for _ in range(min(delivered, len(swarm.under_way))):
        swarm.deliver(swarm.under_way.pop(draw.randrange(len(swarm.under_way))))
    swarm.publish(Tree(tree.n, tuple((k - 1, k) for k in range(1, tree.n))), 2)
    old = [tell for tell in swarm.under_way if tell.head.epoch.number == 1]
    for tell in old:
        swarm.under_way.remove(tell)
        assert swarm.deliver(tell) is Verdict.EPOCH_BEHIND
    swarm.run(draw)
    for relay in swarm.relays:
        assert_exact(relay.known, 10, range(tree.n))


def test_a_peer_that_has_left_is_missing_from_then_on() -> None:
    swarm = Swarm(CHAIN)
    for i in range(3):
        swarm.evaluate(i, 10)
    swarm.run(random.Random(0))
    swarm.publish(Tree(2, ((0, 1),)), 2)
    swarm.run(random.Random(0))
    assert_exact(swarm.relays[0].known, 10, [0, 1, 2])  # it was there then
    for i in range(2):
        swarm.evaluate(i, 20)
    swarm.run(random.Random(0))
    assert_exact(swarm.relays[0].known, 20, [0, 1])


def test_a_newcomer_tells_nothing_that_an_earlier_life_has_measured() -> None:
    swarm = Swarm(CHAIN)
    swarm.evaluate(0, 10)
    swarm.relays[0].restart()
    swarm.under_way = []
    swarm.publish(CHAIN, 2)
    assert not swarm.under_way


# --- from outside ------------------------------------------------------------------------------


def from_peer_1(**changes: object) -> Head:
    head = Head("peer-1", 1, Epoch(1, 1), 4, Kind.METRIC, count=2, metrics=("loss",))
    return replace(head, **changes)  # type: ignore[arg-type]


SOUND = Sum(F(3), F(2), 2)


@pytest.mark.parametrize(
    ("head", "one", "verdict"),
    [
        (from_peer_1(), SOUND, Verdict.ACCEPTED),
        (from_peer_1(sender="peer-2"), SOUND, Verdict.NOT_A_NEIGHBOUR),
        (from_peer_1(epoch=Epoch(1, 2)), SOUND, Verdict.EPOCH_AHEAD),
        (from_peer_1(epoch=Epoch(0, 9)), SOUND, Verdict.EPOCH_BEHIND),
        (from_peer_1(epoch=Epoch(1, 1, 5)), SOUND, Verdict.EPOCH_BEHIND),
        (from_peer_1(incarnation=2), SOUND, Verdict.OLD_INCARNATION),
        (from_peer_1(step=5), SOUND, Verdict.FOREIGN_RUN),  # no evaluation is due there
        (from_peer_1(count=3), SOUND, Verdict.BAD_COUNT),
        (from_peer_1(count=0), Sum(0, 0, 0), Verdict.BAD_COUNT),
        (from_peer_1(metrics=("lass",)), SOUND, Verdict.BAD_METRIC),
        (from_peer_1(), Sum(F(3), F(-2), 2), Verdict.BAD_METRIC),
        (from_peer_1(), Sum(F(3), F(0), 2), Verdict.BAD_METRIC),  # a value without any weight
        (from_peer_1(), Sum(F(3), F(2), 3), Verdict.BAD_METRIC),  # more than the message's peers
        (from_peer_1(), Sum(F(3), F(2), -1), Verdict.BAD_METRIC),
        (from_peer_1(), Sum(2 * LARGEST, 1.0, 2), Verdict.BAD_METRIC),
        (from_peer_1(), Sum(1.0, 2 * LARGEST, 2), Verdict.BAD_METRIC),
        (from_peer_1(), Sum(float("nan"), 1.0, 2), Verdict.BAD_METRIC),
        (from_peer_1(), Sum(1.0, float("nan"), 2), Verdict.BAD_METRIC),
        (from_peer_1(), Sum(1.0, float("inf"), 2), Verdict.BAD_METRIC),
    ],
)
def test_messages_are_judged_before_they_are_kept(head: Head, one: Sum, verdict: Verdict) -> None:
    swarm = Swarm(CHAIN, is_due=lambda step: step % 2 == 0)
    relay = swarm.relays[0]
    relay.measured(2, {"loss": (F(1), F(1))})
    assert relay.received(head, dict.fromkeys(head.metrics, one)) == (verdict, [])
    relay.measured(4, {"loss": (F(1), F(1))})
    relay.close()
    assert relay.known is not None
    assert relay.known.peers == (3 if verdict is Verdict.ACCEPTED else 1)


def test_of_two_messages_of_an_evaluation_the_one_of_more_peers_holds() -> None:
    relay = Swarm(CHAIN).relays[0]
    fewer, more = from_peer_1(count=1), from_peer_1(count=2)
    assert relay.received(fewer, {"loss": Sum(1, 1, 1)})[0] is Verdict.ACCEPTED
    assert relay.admit(fewer) is Verdict.DUPLICATE
    assert relay.received(more, {"loss": Sum(3, 2, 2)})[0] is Verdict.ACCEPTED
    assert relay.admit(more) is Verdict.DUPLICATE
    assert relay.admit(fewer) is Verdict.STALE_STEP


def test_names_taken_on_trust_are_held_to_the_first_evaluation() -> None:
    relay = Swarm(CHAIN).relays[0]
    head = from_peer_1(metrics=("lass",))
    assert relay.received(head, {"lass": SOUND}) == (Verdict.ACCEPTED, [])
    dropped, told = relay.measured(4, {"loss": (F(1), F(1))})
    assert isinstance(dropped, Drop)
    assert isinstance(told, Tell)
    assert list(told.sums) == ["loss"]
    assert (dropped.head.sender, dropped.head.step) == ("peer-1", 4)
    relay.close()
    assert relay.known == SwarmMean(4, 1, {"loss": Sum(1, 1, 1)})


@pytest.mark.parametrize("is_first", [True, False])
def test_who_measures_nothing_passes_the_others_on(is_first: bool) -> None:
    """A peer without data, or a program that does not evaluate: whether its turn comes before or
    after those of the others. It is none of the peers in the mean."""
    swarm = Swarm(CHAIN)
    turns = [lambda: swarm.post(swarm.relays[1].measured(3, {}))]
    turns.insert(is_first, lambda: [swarm.evaluate(i, 3) for i in (0, 2)])
    for turn in turns:
        turn()
        swarm.round()
    swarm.round()
    for relay in swarm.relays:
        assert_exact(relay.known, 3, [0, 2])


def test_who_only_listens_exports_nothing() -> None:
    """Names are not known before the first evaluation of its own."""
    relay = Swarm(CHAIN).relays[0]
    relay.received(from_peer_1(), {"loss": SOUND})
    relay.close()
    assert relay.known is None


def test_memory_is_bounded_and_the_oldest_goes_first() -> None:
    relay = Swarm(CHAIN).relays[0]
    heads = [from_peer_1(step=step) for step in range(KEPT + 1)]
    verdicts: Mapping[int, Verdict] = {
        head.step: relay.received(head, {"loss": SOUND})[0] for head in heads
    }
    assert set(verdicts.values()) == {Verdict.ACCEPTED}
    assert relay.admit(heads[0]) is Verdict.STALE_STEP
    assert relay.admit(heads[1]) is Verdict.DUPLICATE
