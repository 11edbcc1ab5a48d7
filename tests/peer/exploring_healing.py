"""The trials of `test_healing` at length: up to five bridges, and every message that may get lost
(of four bridges every third, of five every eleventh). Explorations end at a number of states.

Run by `make model-check`; MODEL_CHECK_STATES says how many states each exploration follows,
MODEL_CHECK_SEEDS how many random worlds, and random walks on each graph, there are.
"""

from __future__ import annotations

import itertools
import os
import random

import pytest

from tests.peer.healing_trials import crash_and_lose, crash_two, part_and_heal, random_faults
from tests.peer.healing_worlds import Adversary, Pairs
from tests.shapes import connected_shapes

STATES = int(os.environ.get("MODEL_CHECK_STATES", "40000"))
SEEDS = int(os.environ.get("MODEL_CHECK_SEEDS", "1000"))
UP_TO_4 = [(n, graph) for n in (2, 3, 4) for graph in connected_shapes(n)]
UP_TO_5 = [*UP_TO_4, *((5, graph) for graph in connected_shapes(5))]

pytestmark = pytest.mark.timeout(3600)


def test_there_are_thirty_shapes_of_two_to_five_bridges() -> None:
    assert len(UP_TO_5) == 1 + 2 + 6 + 21


@pytest.mark.parametrize(("n", "graph"), UP_TO_5)
def test_whatever_an_adversary_does(n: int, graph: Pairs) -> None:
    adversary = Adversary(n, graph, losses=2, crashes=2)
    assert adversary.explore(STATES) >= STATES


@pytest.mark.parametrize(("n", "graph"), UP_TO_5)
def test_wherever_an_adversary_goes(n: int, graph: Pairs) -> None:
    for seed in range(SEEDS // 25):
        adversary = Adversary(n, graph, losses=60, crashes=n - 1)
        adversary.walk(random.Random(seed), 600)
        assert adversary.registry.trees


@pytest.mark.parametrize(("n", "graph"), UP_TO_5)
def test_any_crash_and_any_lost_message(n: int, graph: Pairs) -> None:
    for dead in range(n):
        crash_and_lose(n, graph, dead, every={2: 1, 3: 1, 4: 3, 5: 11}[n])


@pytest.mark.parametrize(("n", "graph"), [(n, graph) for n, graph in UP_TO_5 if n > 2])
def test_any_two_crashes(n: int, graph: Pairs) -> None:
    for pair in itertools.permutations(range(n), 2):
        for later_s in (0.0, 1.7, 3.4, 5.0, 6.2, 7.7):
            crash_two(n, graph, pair, later_s)


@pytest.mark.parametrize(("n", "graph"), UP_TO_5)
def test_any_partition(n: int, graph: Pairs) -> None:
    for size in range(1, n // 2 + 1):
        for side in itertools.combinations(range(n), size):
            part_and_heal(n, graph, side)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_faults_of_all_kinds(seed: int) -> None:
    random_faults(seed)
