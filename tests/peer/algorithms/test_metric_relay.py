"""The mean of metrics: exact once all peers have measured often enough, no peer counted twice."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction as F

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.trees import Tree
from peer.algorithms.core import Epoch, Verdict
from peer.algorithms.metric_relay import MetricMessage, MetricRelay, Sums
from peer.simulator.exact import views


def relays_on(tree: Tree) -> dict[str, MetricRelay]:
    return {view.me: MetricRelay(view) for view in views([tree])}


def evaluate(
    relays: dict[str, MetricRelay], step: int, weights: dict[str, int], *, lost: frozenset[str]
) -> dict[str, Sums]:
    """All measure at once: peer i's loss is step + i. Messages of those in `lost` get lost."""
    known, messages = {}, []
    for i, (peer, relay) in enumerate(relays.items()):
        value = {"loss": (F(step + i), F(weights[peer]))}
        known[peer], sent = relay.measured(step, value)
        messages += [(j, message) for j, message in sent.items() if peer not in lost]
    for to, message in messages:
        assert relays[to].received(message) is Verdict.ACCEPTED
    return known


@st.composite
def trees(draw: st.DrawFn) -> Tree:
    n = draw(st.integers(1, 8))
    order = draw(st.permutations(range(n)))
    return Tree(n, tuple((order[draw(st.integers(0, k - 1))], order[k]) for k in range(1, n)))


@given(trees(), st.data())
def test_sums_hold_each_peer_once_with_what_it_measured_a_hop_ago(
    tree: Tree, data: st.DataObject
) -> None:
    """Here messages of an evaluation arrive after it: a peer h hops away is h evaluations old."""
    relays = relays_on(tree)
    weights = {peer: data.draw(st.integers(1, 5)) for peer in relays}
    steps = [10 * k for k in range(tree.diameter + 3)]
    for step in steps:
        known = evaluate(relays, step, weights, lost=frozenset())
    for i, peer in enumerate(relays):
        ages = {j: steps[-1 - hops] for j, _, hops in tree.walk(i)}
        total = sum(weights[f"peer-{j}"] * F(step + j) for j, step in ages.items())
        assert known[peer].peers == tree.n
        assert known[peer].mean("loss") == total / sum(weights.values())
        assert known[peer].oldest_step == min(ages.values())


@given(trees(), st.data())
def test_what_is_lost_makes_a_mean_older_but_no_less_complete(
    tree: Tree, data: st.DataObject
) -> None:
    relays = relays_on(tree)
    weights = dict.fromkeys(relays, 1)
    for k in range(tree.diameter + 1):
        evaluate(relays, k, weights, lost=frozenset())
    lost = data.draw(st.frozensets(st.sampled_from(sorted(relays))))
    evaluate(relays, tree.diameter + 1, weights, lost=lost)
    known = evaluate(relays, tree.diameter + 2, weights, lost=frozenset())
    assert {sums.peers for sums in known.values()} == {tree.n}
    assert {sums.totals["loss"][1] for sums in known.values()} == {tree.n}


def test_at_first_a_peer_knows_its_own_measurement_alone() -> None:
    relay = relays_on(Tree(3, ((0, 1), (1, 2))))["peer-1"]
    sums, messages = relay.measured(5, {"accuracy": (F(1, 2), F(10))})
    assert sums == Sums({"accuracy": (5, 10)}, peers=1, oldest_step=5)
    assert list(messages) == ["peer-0", "peer-2"]
    assert sums.mean("accuracy") == F(1, 2)
    assert sums.mean("loss") is None


def test_peers_without_data_count_without_weight() -> None:
    relay = relays_on(Tree(1, ()))["peer-0"]
    sums, messages = relay.measured(0, {"loss": (F(3), F(0))})
    assert (sums.mean("loss"), sums.peers, messages) == (None, 1, {})


def from_peer_1(**changes: object) -> MetricMessage:
    sums = Sums({}, peers=2, oldest_step=4)
    return replace(MetricMessage("peer-1", Epoch(1, 1), 4, sums), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("message", "verdict"),
    [
        (from_peer_1(), Verdict.ACCEPTED),
        (from_peer_1(sender="peer-2"), Verdict.NOT_A_NEIGHBOUR),
        (from_peer_1(epoch=Epoch(1, 2)), Verdict.EPOCH_AHEAD),
        (from_peer_1(epoch=Epoch(0, 9)), Verdict.EPOCH_BEHIND),
        (from_peer_1(sums=Sums({}, peers=3, oldest_step=4)), Verdict.BAD_COUNT),
        (from_peer_1(sums=Sums({}, peers=0, oldest_step=4)), Verdict.BAD_COUNT),
    ],
)
def test_messages_are_judged_before_they_are_kept(message: MetricMessage, verdict: Verdict) -> None:
    relay = relays_on(Tree(3, ((0, 1), (1, 2))))["peer-0"]
    assert relay.received(message) is verdict
    assert relay.measured(5, {})[0].peers == (3 if verdict is Verdict.ACCEPTED else 1)


def test_a_message_that_comes_late_does_not_replace_a_newer_one() -> None:
    relay = relays_on(Tree(3, ((0, 1), (1, 2))))["peer-0"]
    assert relay.received(from_peer_1(step=6)) is Verdict.ACCEPTED
    assert relay.received(from_peer_1(step=6)) is Verdict.STALE_STEP
    assert relay.received(from_peer_1(step=5)) is Verdict.STALE_STEP
