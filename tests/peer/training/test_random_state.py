"""Random states do not touch each other."""

import json
import random

import numpy as np
import pytest
import torch

from peer.training.random_state import RandomState, derive_seed


def draw() -> tuple[float, ...]:
    return (
        torch.rand(()).item(),
        float(np.random.rand()),
        *np.random.randn(2).tolist(),
        random.random(),
        random.gauss(0, 1),
    )


def test_what_is_drawn_inside_depends_on_the_seed_alone() -> None:
    first, second, other = RandomState(7), RandomState(7), RandomState(8)
    with first:
        one = [draw(), draw()]
    draw()
    with second:
        two = [draw()]
    with other:
        foreign = draw()
    with second:
        two.append(draw())
    assert one == two
    assert not set(foreign) & set(one[0])


def test_the_outer_state_goes_on_as_if_nothing_had_been_drawn() -> None:
    def outer() -> list[float]:
        return [torch.rand(()).item(), float(np.random.rand()), random.random()]

    torch.manual_seed(0), np.random.seed(0), random.seed(0)
    expected = [outer(), outer()]
    torch.manual_seed(0), np.random.seed(0), random.seed(0)
    found = [outer()]
    with RandomState(1):
        draw()
    found.append(outer())
    assert found == expected


def test_the_outer_state_comes_back_after_an_error() -> None:
    before = torch.get_rng_state()
    state = RandomState(1)
    with pytest.raises(ZeroDivisionError), state:
        torch.rand(3 // 0)
    assert torch.equal(torch.get_rng_state(), before)
    with state:
        draw()


def test_saved_state_goes_on_where_it_was() -> None:
    state = RandomState(3)
    with state:
        draw()
        random.gauss(0, 1)  # leaves the second of a pair behind
    tensors, values = state.state()
    with state:
        expected = [draw(), draw()]
    copy = RandomState(99)
    copy.load_state(tensors, json.loads(json.dumps(values)))
    with copy:
        assert [draw(), draw()] == expected


def test_seeding_inside_stays_inside() -> None:
    np.random.seed(5)
    expected = np.random.rand()
    np.random.seed(5)
    with RandomState(1):
        np.random.seed(0)
        torch.manual_seed(0)
    assert np.random.rand() == expected


def test_derived_seeds_are_stable_and_tell_purposes_apart() -> None:
    seeds = [derive_seed("a", 1), derive_seed("a", 2), derive_seed("b", 1), derive_seed("a", 1, 0)]
    seeds.append(derive_seed("a", "1"))
    assert len(set(seeds)) == 5
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed("a", 1) == 8088918357718693861
