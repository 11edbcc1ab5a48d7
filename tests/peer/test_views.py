"""From a layout to what each peer and the public is told of it."""

from __future__ import annotations

import json
from fractions import Fraction

import pytest

from coordinator.members import Change, Elected, Member, Reason
from coordinator.progress import Progress
from coordinator.views import Layout, lay_out
from peer.algorithms.core import Epoch
from peer.views import peer_ids, topology_event, views_of
from relayswarm.config import AlgorithmConfig, RunConfig, TopologyConfig

TWO_TREES = TopologyConfig(graph="complete", tree="double-binary-trees")


def layout_of(n: int, graph: str = "chain", **config: object) -> Layout:
    topology = config.pop("topology", TopologyConfig(graph=graph))
    return lay_out(RunConfig(peers=n, topology=topology, **config), peer_ids(n))


def elected(*peers: str, step: int = 17) -> Elected:
    members = tuple(
        Member(peer, 100 + k, "", "", 1, k, Progress.begin(0, 0.0), expires=1.0, last_seen=0.0)
        for k, peer in enumerate(peers)
    )
    return Elected(7, 3, step, members, (Change(Reason.JOINED, peers[-1]),))


def test_ids_are_numbered_from_zero() -> None:
    assert peer_ids(3) == ["peer-0", "peer-1", "peer-2"]


def test_each_member_of_a_chain_gets_its_view() -> None:
    first, middle, last = views_of(layout_of(3), correct_lr=False)
    assert [view.me for view in (first, middle, last)] == peer_ids(3)
    assert first.trees == ({"peer-1": 2},)
    assert middle.trees == ({"peer-0": 1, "peer-2": 1},)
    assert last.trees == ({"peer-1": 2},)
    assert middle.neighbours == ("peer-0", "peer-2")
    assert {view.epoch for view in (first, middle, last)} == {first.epoch}
    assert first.members == dict.fromkeys(peer_ids(3), 1)
    assert (first.n, first.diameter, first.effective_step, first.lr_scale) == (3, 2, 0, 1)


def test_mixing_rows_are_doubles_that_sum_to_one() -> None:
    for view in views_of(layout_of(6, "ring"), correct_lr=False):
        assert all(type(weight) is float for weight in view.mixing.values())
        assert list(view.mixing) == [*sorted({view.me, *view.neighbours})]
        assert sum(view.mixing.values()) == pytest.approx(1)


def test_the_factor_of_the_rate_is_the_trees_where_wanted() -> None:
    """Chain of 4: 3/2 (appendix D.1)."""
    assert {view.lr_scale for view in views_of(layout_of(4), correct_lr=True)} == {Fraction(3, 2)}
    overlapping = layout_of(4, algorithm=AlgorithmConfig(overlap=True))
    (view, *_) = views_of(overlapping, correct_lr=True)
    assert view.lr_scale == 1 + Fraction(2 * 10, 16)  # 1 + 2 W / n^2, W = 10


def test_behind_the_edges_of_a_peer_are_all_others_in_every_tree() -> None:
    layout = layout_of(9, topology=TWO_TREES)
    for view in views_of(layout, correct_lr=False):
        assert [sum(tree.values()) for tree in view.trees] == [8, 8]


def test_an_elected_epoch_has_its_age_lives_and_step() -> None:
    layout = layout_of(3)
    views = list(views_of(layout, correct_lr=False, elected=elected(*peer_ids(3))))
    lives = {"peer-0": 100, "peer-1": 101, "peer-2": 102}
    for view in views:
        assert view.members == lives
        assert view.effective_step == 17
        assert view.epoch == Epoch(7, 3, layout.digest(lives))


def test_epochs_differ_if_members_lives_or_trees_do() -> None:
    chain, star = layout_of(3), layout_of(3, "star")
    smaller = layout_of(2)
    epochs = [next(iter(views_of(layout, correct_lr=False))).epoch for layout in (chain, smaller)]
    reborn = next(iter(views_of(chain, correct_lr=False, elected=elected(*peer_ids(3))))).epoch
    hung = next(iter(views_of(star, correct_lr=False))).epoch
    assert len({epoch.digest for epoch in (*epochs, reborn, hung)}) == 4


def test_the_event_tells_what_the_views_say() -> None:
    event = topology_event(layout_of(4, "star"))
    assert json.loads(json.dumps(event)) == event
    assert event["event"] == "topology"
    assert event["epoch"] == {"term": 1, "number": 1}
    assert event["members"] == peer_ids(4)
    assert event["root"] == "peer-0"
    assert event["trees"] == [[["peer-0", f"peer-{k}"] for k in (1, 2, 3)]]
    assert event["edges"] == event["trees"][0]
    assert (event["diameter"], event["effective_step"]) == (2, 0)
    assert Fraction(event["lr_factor"]) == layout_of(4, "star").lr_factor


def test_an_edge_of_both_trees_is_told_once() -> None:
    event = topology_event(layout_of(8, topology=TWO_TREES))
    edges = [tuple(edge) for tree in event["trees"] for edge in tree]
    assert len(edges) == 2 * 7
    assert [tuple(edge) for edge in event["edges"]] == list(dict.fromkeys(edges))


def test_the_event_of_an_elected_epoch_has_its_age_and_step() -> None:
    event = topology_event(layout_of(2), elected("peer-0", "peer-1", step=5))
    assert event["epoch"] == {"term": 7, "number": 3}
    assert (event["reason"], event["detail"]) == ("joined", "joined peer-1")
    assert event["effective_step"] == 5
