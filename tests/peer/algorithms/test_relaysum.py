"""RelaySum's mean estimation over fractions: the estimate is a mean of samples, by their ages."""

from __future__ import annotations

import random
from fractions import Fraction as F

from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.double_binary_trees import in_order_tree, mirrored_tree
from coordinator.trees import Tree
from peer.algorithms.core import Epoch, Head, Run
from peer.algorithms.relaysum import RelaySum
from peer.simulator.exact import ExactSwarm, Problem, Vector, views
from peer.simulator.links import LosingLink
from peer.simulator.world import World
from tests.shapes import trees

STEPS = 6


def sample(i: int, step: int, d: int = 1) -> Vector:
    draw = random.Random(f"{i} {step}")
    return tuple(F(draw.randrange(-99, 100)) for _ in range(d))


def swarm_of(trees: list[Tree], d: int = 1, world: World | None = None) -> ExactSwarm:
    nothing = [(F(0),) * d] * trees[0].n
    problem = Problem(nothing, nothing, sample=lambda i, step: sample(i, step, d))
    return ExactSwarm("relaysum", views(trees), Run(STEPS), problem, world=world)


def known(tree: Tree, i: int, t: int) -> list[tuple[int, int]]:
    """The samples (peer, step) that have reached i after step t: h hops take h - 1 steps."""
    return [(j, step) for j, _, hops in tree.walk(i) for step in range(t - max(hops - 1, 0) + 1)]


@settings(max_examples=30)
@given(trees())
def test_the_estimate_is_the_mean_of_all_samples_that_can_have_arrived(tree: Tree) -> None:
    """ "a uniform average of all samples that can reach a worker i at that timestep"."""
    swarm = swarm_of([tree]).run()
    for i, estimates in enumerate(swarm.models):
        for t, (estimate,) in enumerate(estimates):
            samples = [sample(j, step)[0] for j, step in known(tree, i, t)]
            assert estimate == sum(samples) / len(samples)


@settings(max_examples=20)
@given(trees(), st.integers(0, 2**32))
def test_lost_messages_leave_it_a_mean(tree: Tree, seed: int) -> None:
    """With samples that are all 7 the estimate is 7, whatever is missing."""

    def loses(sender: str, to: str, head: Head) -> bool:
        return random.Random(f"{seed} {sender} {to} {head.step}").random() < 0.3

    nothing = [(F(0),)] * tree.n
    problem = Problem(nothing, nothing, sample=lambda i, step: (F(7),))  # noqa: ARG005
    world = World(LosingLink(loses))
    swarm = ExactSwarm("relaysum", views([tree]), Run(STEPS), problem, world=world).run()
    assert {x[0] for models in swarm.models for x in models} == {F(7)}


def test_two_trees_have_counts_of_their_own() -> None:
    both = [Tree(6, tuple(edges)) for edges in (in_order_tree(6), mirrored_tree(6))]
    swarm = swarm_of(both, d=3).run()
    for i, peer in enumerate(swarm.algorithms):
        assert isinstance(peer, RelaySum)
        for k, tree in enumerate([0, 0, 1]):
            samples = [sample(j, step, 3)[k] for j, step in known(both[tree], i, STEPS - 1)]
            assert peer.samples[tree] == len(samples)
            assert swarm.bodies[i].vectors["x"][k] == sum(samples) / len(samples)


def test_sums_outlive_a_change_of_topology() -> None:
    """Peers 0 - 1 - 2, after three steps 1 - 0 - 2: what peer 1 was about to relay is lost."""
    chain, other = Tree(3, ((0, 1), (1, 2))), Tree(3, ((0, 1), (0, 2)))
    swarm = swarm_of([chain])
    swarm.world.publish(views([other], epoch=Epoch(1, 2), effective_step=3))
    swarm.run()
    before = known(chain, 0, 2)
    after = [(j, step + 3) for j, step in known(other, 0, STEPS - 4)]
    samples = [sample(j, step)[0] for j, step in [*before, *after]]
    assert len(samples) == 3 + 3 + 2 + 9
    assert swarm.models[0][-1] == (sum(samples) / len(samples),)
