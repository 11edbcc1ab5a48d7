"""Python's collector while a swarm is simulated, and after."""

from __future__ import annotations

import gc

import pytest

from peer.simulator.memory import GARBAGE, memory_of_a_swarm


def test_the_collector_is_as_before_after_a_run_and_after_a_failure() -> None:
    before, frozen = gc.get_threshold(), gc.get_freeze_count()
    with memory_of_a_swarm():
        assert gc.get_threshold()[0] == GARBAGE
        assert gc.get_freeze_count() > frozen
    with pytest.raises(ValueError, match="as planned"), memory_of_a_swarm():
        raise ValueError("as planned")
    assert gc.get_threshold() == before
    assert gc.get_freeze_count() == 0
