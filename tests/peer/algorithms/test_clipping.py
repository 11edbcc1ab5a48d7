"""Clipping: what a message may do, whatever is in it, and that a near one is left alone."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from peer.algorithms.clipping import Clipped, clipped, plain
from peer.algorithms.core import LIVE, Epoch, Head, Kind, Lin, Message, Reg
from peer.registers import Registers

X = Reg(LIVE)
HEAD = Head("you", 1, Epoch(1, 1), 4, Kind.GOSSIP, count=1)

numbers = st.floats(-(2.0**100), 2.0**100, width=32)
vectors = st.lists(numbers, min_size=3, max_size=3).map(torch.tensor)


def averaged(x: Tensor, lin: Lin) -> Tensor:
    """What the driver makes of a combination, in the register of the model."""
    registers = Registers(x.clone(), {}, x.numel())
    registers.set(X, plain(lin, lambda difference: registers.norm(difference)))
    return registers[LIVE]


def message(vector: Tensor, **head: Any) -> Message:
    return Message(replace(HEAD, **head), 0, vector)


@given(vectors, st.floats(1e-3, 1e3), st.integers(1, 7))
def test_a_sum_moves_a_peer_by_its_count_times_the_radius_at_most(
    vector: Tensor, radius: float, count: int
) -> None:
    x, n = torch.tensor([1.0, -2.0, 0.5]), 8
    held = clipped(message(vector, kind=Kind.RELAY, count=count), X, radius, count)
    moved = averaged(x, Lin(((n - count, X), (1, held)), n)) - x
    assert float(moved.double().norm()) <= count * radius / n * (1 + 1e-4) + 1e-5


@pytest.mark.parametrize("far", [1e25, 3e38])
def test_what_is_too_far_to_be_measured_is_not_used(far: float) -> None:
    x = torch.tensor([1.0, -2.0, 0.5])
    held = clipped(message(torch.full((3,), far) * torch.tensor([1.0, -1.0, 1.0])), X, 1.0)
    moved = averaged(x, Lin(((1, X), (1, held)), 2)) - x
    assert float(moved.norm()) <= 0.5 + 1e-4
    assert bool(torch.isfinite(moved).all())


def test_a_message_on_the_radius_moves_as_far_as_it_says_and_in_its_direction() -> None:
    x = torch.zeros(2)
    lin = Lin(((1, X), (1, clipped(message(torch.tensor([30.0, 40.0])), X, 1.0))), 2)
    assert torch.allclose(averaged(x, lin), torch.tensor([0.3, 0.4]))


@given(vectors)
def test_what_is_near_is_used_bit_for_bit(vector: Tensor) -> None:
    sound = message(vector)
    held = clipped(sound, X, math.inf)
    assert isinstance(held, Clipped)
    x = torch.tensor([1.0, -2.0, 0.5])
    for make in (lambda ref: ((1, X), (1, ref)), lambda ref: ((0.25, X), (0.75, ref))):
        assert torch.equal(averaged(x, Lin(make(held), 2)), averaged(x, Lin(make(sound), 2)))


def test_without_a_radius_nothing_is_held() -> None:
    sound = message(torch.zeros(1))
    assert clipped(sound, X, None) is sound
    lin = Lin(((1, X), (1, sound)))
    assert plain(lin, pytest.fail) is lin
