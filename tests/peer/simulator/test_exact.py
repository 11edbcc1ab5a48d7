"""Vectors of fractions do what registers of tensors do."""

from __future__ import annotations

from fractions import Fraction as F

import pytest
import torch

from coordinator.graphs import build_graph
from coordinator.trees import Tree
from peer.algorithms.core import (
    LIVE,
    Epoch,
    Head,
    Kind,
    Lin,
    Message,
    Reg,
    Role,
    Run,
    Train,
    Trained,
)
from peer.registers import Registers
from peer.simulator.exact import ExactBody, ExactSwarm, ExactVectors, Problem, views
from peer.simulator.links import LosingLink
from peer.simulator.world import World

X, M, C = Reg(LIVE), Reg("m"), Reg("c")
ROLES = {"m": Role.MODEL, "c": Role.CORRECTION}
START = (1, 2, 3, 4, 5)


def head(kind: Kind, tree: int = 0) -> Head:
    return Head("a", 1, Epoch(1, 1), 0, kind, tree=tree, count=1)


def exact() -> ExactVectors:
    return ExactVectors(tuple(map(F, START)), ROLES, parameters_end=4)


@pytest.mark.parametrize("trees", [1, 2])
@pytest.mark.parametrize("kind", [Kind.RELAY, Kind.GOSSIP])
def test_they_agree_with_registers(trees: int, kind: Kind) -> None:
    """Halves, buffers, signs, divisors, messages; all values are exact in float64 too."""
    tensors = Registers(torch.tensor(START, dtype=torch.float64), ROLES, parameters_end=4)
    fractions = exact()
    for vectors in (tensors, fractions):
        vectors.split(trees)
        vectors.set(M, Lin(((3, X),)))
        vectors.set(C, Lin(((-1, X), (2, M)), 4))
        for tree in range(trees):
            sent = vectors.outgoing((Lin(((1, M), (F(1, 2), X))),), head(kind, tree))
            payload = sent[0] if isinstance(sent, tuple) else sent.read(0, 0, sent.elements)
            part = tree if kind is Kind.RELAY else None
            vectors.set(X, Lin(((1, X), (1, Message(head(kind, tree), 0, payload))), 2), part)
    for name in (LIVE, "m", "c"):
        assert [float(x) for x in fractions[name]] == tensors[name].tolist()
    distance = Lin(((1, X), (-1, M)))
    assert fractions.norm(distance, 0) == pytest.approx(tensors.norm(distance, 0))


def test_an_empty_combination_is_zero() -> None:
    vectors = exact()
    vectors.set(X, Lin(()))
    assert vectors[LIVE] == (0,) * 5


def test_bodies_descend() -> None:
    """Two steps of 1/2 toward 8 from 0: 4, 6; scaled by 1/2: a quarter of the way at a time."""
    body = ExactBody(ExactVectors((F(0), F(1)), {}), (F(8), F(0)), F(1, 2), local_steps=2)
    assert body.train(Train(0)) == Trained(0, F(1, 2), 2)
    assert body.vectors[LIVE] == (6, F(1, 4))
    assert body.train(Train(1, lr_scale=F(1, 2))) == Trained(1, F(1, 4), 2)
    assert body.vectors[LIVE][0] == F(8) - 2 * F(9, 16)
    assert body.updates[0] == (6, F(-3, 4))


def test_views_are_those_of_a_chain() -> None:
    graph = build_graph("chain", 3)
    weights = {i: {j: F(1, 3) for j in range(3)} for i in range(3)}
    first, middle, _ = views([Tree(3, ((0, 1), (1, 2)))], graph, weights, name="abc".__getitem__)
    assert middle.trees == ({"a": 1, "c": 1},)
    assert first.trees == ({"b": 2},)
    assert middle.neighbours == ("a", "c")
    assert list(middle.mixing) == ["a", "b", "c"]
    assert (middle.n, middle.diameter) == (3, 2)


def test_a_swarm_that_hangs_is_noticed() -> None:
    """A peer that waits for ever: no deadline comes before the run is over."""
    problem = Problem([(F(0),)] * 2, [(F(1),)] * 2)
    world = World(LosingLink(lambda *_: True, known=False))
    tree = views([Tree(2, ((0, 1),))])
    swarm = ExactSwarm("relaysgd", tree, Run(2, deadline_s=1e9), problem, world=world)
    world.run(lambda: world.now > 1.5)
    world.crash("peer-1")
    with pytest.raises(AssertionError, match="have not finished"):
        swarm.run()
