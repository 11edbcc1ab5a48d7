"""A member who poisons the model, and what clipping leaves of it; small."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.poison import HOSTILE, POISONS, Poisoned
from relayswarm import config as run_config

SETTINGS = ("peers=4", "steps=40", "task.name=quadratics", "topology.graph=complete")


def worst(method: str, poison: Any, *settings: str) -> float:
    """Suboptimality of the honest peer that is worst off."""
    config = run_config.parse("", (*SETTINGS, f"algorithm.name={method}", *settings))
    given: Any = (config, None, lambda _: None, 0)
    outcome = Poisoned(*given, hostile=HOSTILE, poison=poison).run()
    return max(p.metrics["suboptimality"] for p in outcome.peers if p.id != HOSTILE)


@pytest.mark.parametrize("method", ["relaysgd", "dpsgd", "swarmsgd", "adpsgd"])
def test_clipping_bounds_what_a_poisoner_does(method: str) -> None:
    """Suboptimality is 17 at the start; the limit is a tenth of the way to the optimum."""
    poison = POISONS["noise"]
    assert worst(method, poison) > 20
    assert worst(method, poison, "robust.clip=1.0") < 5
