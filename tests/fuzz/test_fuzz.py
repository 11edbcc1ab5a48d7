"""A slice of `make fuzz`: sound inputs, spoilt by Hypothesis, and bytes of its own."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.calls import LONGEST
from tests.fuzz.targets import SEEDS, TARGETS

EXAMPLES = 300


@st.composite
def spoilt(draw: Callable[[Any], Any], seeds: list[bytes]) -> bytes:
    """A seed in which a few bytes are changed, cut out, put in, or taken from another seed."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        stop = draw(st.integers(start, min(len(data), start + 16)))
        other = draw(st.sampled_from(seeds))
        cut = draw(st.integers(0, len(other)))
        data[start:stop] = draw(
            st.one_of(
                st.binary(max_size=16),
                st.sampled_from([b"", b"\0", b"\xff" * 4, b"\xff" * 8, b"\x80" * 9, other[cut:]]),
            )
        )
    return bytes(data[:LONGEST])


@pytest.mark.parametrize("name", TARGETS)
def test_sound_inputs_are_taken(name: str) -> None:
    for seed in SEEDS[name]:
        assert len(seed) <= LONGEST
        assert TARGETS[name](seed), seed


@pytest.mark.parametrize("name", TARGETS)
def test_whatever_comes_is_taken_or_refused(name: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    inputs = st.one_of(spoilt(SEEDS[name]), st.binary(max_size=200))

    @settings(max_examples=EXAMPLES)
    @given(inputs)
    def run(data: bytes) -> None:
        TARGETS[name](data)

    run()
