"""Peers that can only dial out: whom they are linked with, and who may join."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.admission import refuse
from coordinator.graphs import GraphError, build_graph, without_edges_among
from coordinator.members import (
    Admitted,
    Elected,
    Gone,
    Join,
    NoTree,
    Reason,
    Refusal,
    Refused,
    Renew,
    Tick,
)
from coordinator.membership import Membership
from coordinator.reach import no_tree_text, refuse_without_donor
from coordinator.views import lay_out
from relayswarm.config import parse
from tests.coordinator.test_admission import RULES, member


@given(
    n=st.integers(2, 24),
    seed=st.integers(0, 5),
    name=st.sampled_from(["ring", "chain", "star", "complete", "erdos-renyi", "binary-tree"]),
    data=st.data(),
)
def test_no_edge_among_them_and_all_in_one_part(
    n: int, seed: int, name: str, data: st.DataObject
) -> None:
    graph = build_graph(name, n, seed=seed)
    dial_only = data.draw(st.sets(st.integers(0, n - 1), max_size=n - 1))
    kept = without_edges_among(graph, dial_only)  # its type promises one part
    assert not [e for e in kept.edges if e.u in dial_only and e.v in dial_only]
    before = {e for e in graph.edges if e.u not in dial_only or e.v not in dial_only}
    assert before <= set(kept.edges)
    if not dial_only:
        assert kept == graph


def test_new_links_are_few_and_spread() -> None:
    """A ring of 8, of which 0 and 4 can be dialled: 2 and 6 are left over, one for each."""
    kept = without_edges_among(build_graph("ring", 8), {1, 2, 3, 5, 6, 7})
    added = {(e.u, e.v) for e in kept.edges} - {(e.u, e.v) for e in build_graph("ring", 8).edges}
    assert added == {(0, 4), (0, 2), (4, 6)}
    assert {kept.degree(0), kept.degree(4)} == {4}


def test_without_anybody_to_dial_there_is_no_graph() -> None:
    with pytest.raises(GraphError, match="all of them can only dial out"):
        without_edges_among(build_graph("ring", 3), {0, 1, 2})


def test_the_layout_says_which_links_were_added() -> None:
    config = parse("", ["peers=6", "topology.graph=ring"])
    peers = [f"peer-{k}" for k in range(6)]
    layout = lay_out(config, peers, None, None, {"peer-1", "peer-2", "peer-3"})
    assert layout.notes == ("links added, as some peers can only dial out: peer-0-peer-2",)
    assert lay_out(config, peers).notes == ()


def test_a_run_may_have_no_place_for_them() -> None:
    rules = replace(RULES, no_dial_only="algorithm.name = 'sgp': why; choose another one")
    join = Join(incarnation=5, fingerprint=1, dial_only=True)
    refused = refuse(join, rules, [], set(), fingerprint=1)
    assert refused
    assert refused.refusal is Refusal.DIAL_ONLY
    assert "choose another one, or open this peer's port" in refused.text
    assert refuse(join, RULES, [], set(), fingerprint=1) is None


def test_a_newcomer_needs_somebody_to_ask() -> None:
    hidden, port = member("peer-0"), member("peer-1")
    hidden = replace(hidden, address="")
    newcomer = Join(incarnation=5)
    refused = refuse_without_donor(newcomer, [hidden])
    assert refused
    assert refused.refusal is Refusal.NO_DONOR
    assert "--resume" in refused.text
    assert refuse_without_donor(newcomer, [hidden, port]) is None
    assert refuse_without_donor(newcomer, []) is None
    assert refuse_without_donor(replace(newcomer, step=7), [hidden]) is None
    assert refuse_without_donor(replace(newcomer, weight=0.0), [hidden]) is None


class Swarm:
    """Membership, with a clock."""

    def __init__(self, needed: int) -> None:
        self.rules = replace(RULES, needed=needed, max_members=9)
        self.membership = Membership(self.rules, 0.0, term=1)
        self.now = 0.0

    def join(self, peer: str, *, dial_only: bool, **more: int) -> Admitted | Refused:
        address = "" if dial_only else f"{peer}:1"
        fields = {"incarnation": 1, "fingerprint": 1} | more
        join = Join(peer_id=peer, address=address, dial_only=dial_only, **fields)  # type: ignore[arg-type]
        (answer,) = self.membership.handle(join, self.now)
        assert isinstance(answer, Admitted | Refused)
        return answer

    def tick(self) -> list[object]:
        return list(self.membership.handle(Tick(), self.now))

    def renew(self, *peers: str) -> None:
        for peer in peers:
            self.membership.handle(Renew(peer, 1), self.now)


def test_a_run_that_never_had_a_tree_ends_at_once() -> None:
    swarm = Swarm(needed=2)
    for peer in ("a", "b"):
        swarm.join(peer, dial_only=True)
    assert swarm.tick() == [NoTree(("a", "b"), is_final=True)]
    assert swarm.tick() == []
    assert "no tree of a b" in no_tree_text(("a", "b"))


def test_one_alone_needs_no_tree() -> None:
    swarm = Swarm(needed=1)
    swarm.join("a", dial_only=True)
    assert isinstance(swarm.tick()[0], Elected)


def lost_hub() -> Swarm:
    """Peers a and b train, and the one that both could reach is gone."""
    swarm = Swarm(needed=3)
    for peer in ("a", "b"):
        swarm.join(peer, dial_only=True)
    swarm.join("hub", dial_only=False)
    assert isinstance(swarm.tick()[0], Elected)
    swarm.now = swarm.rules.lease_s - 1
    swarm.renew("a", "b")
    swarm.now = swarm.rules.lease_s
    gone, no_tree = swarm.tick()
    assert isinstance(gone, Gone)
    assert no_tree == NoTree(("a", "b"), is_final=False)
    return swarm


def test_a_swarm_waits_for_somebody_to_dial_and_then_ends() -> None:
    swarm = lost_hub()
    assert swarm.tick() == []
    deadline = swarm.now + swarm.rules.start_timeout_s
    while swarm.now < deadline:
        wanted = swarm.membership.next_deadline()
        assert wanted is not None
        swarm.now = min(wanted, swarm.now + 5)
        swarm.renew("a", "b")
        decisions = swarm.tick()
    assert decisions == [NoTree(("a", "b"), is_final=True)]


def test_it_goes_on_when_somebody_comes() -> None:
    swarm = lost_hub()
    fresh = swarm.join("hub", dial_only=False, incarnation=2, fingerprint=0)
    assert isinstance(fresh, Refused)
    assert fresh.refusal is Refusal.NO_DONOR
    resumed = swarm.join("hub", dial_only=False, incarnation=2, step=9)
    assert isinstance(resumed, Admitted)
    (elected,) = swarm.tick()
    assert isinstance(elected, Elected)
    assert {one.peer_id for one in elected.members} == {"a", "b", "hub"}
    assert {change.reason for change in elected.changes} == {Reason.LEASE_EXPIRED, Reason.JOINED}


def test_donors_are_those_that_can_be_dialled() -> None:
    swarm = Swarm(needed=3)
    for peer in ("a", "b"):
        swarm.join(peer, dial_only=True)
    swarm.join("hub", dial_only=False)
    swarm.tick()
    answer = swarm.join("new", dial_only=True, fingerprint=0)
    assert isinstance(answer, Admitted)
    assert [donor.peer_id for donor in answer.donors] == ["hub"]
