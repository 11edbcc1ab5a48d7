"""Small simulated runs: quadratics of three dimensions, whose metrics are known to the last bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from peer.outcome import RunOutcome
from peer.simulator.run import simulate
from relayswarm import config as run_config

BASE = """
run_id = "small"
peers = 4
steps = 30
[task]
name = "quadratics"
options = {dimension = 3}
[optimizer]
lr = 0.2
[topology]
graph = "chain"
"""


class Played:
    """A run that is over: its outcome, and the events on the way."""

    def __init__(self, text: str, *overrides: str, **options: Any) -> None:
        self.events: list[dict[str, Any]] = []
        config = run_config.parse(BASE + text, overrides)
        self.outcome: RunOutcome = simulate(config, None, self.events.append, **options)

    def of(self, kind: str, peer: str | None = None) -> list[dict[str, Any]]:
        found = [event for event in self.events if event["event"] == kind]
        return [event for event in found if peer is None or event["peer"] == peer]

    @property
    def suboptimality(self) -> list[float]:
        return [peer.metrics["suboptimality"] or 0.0 for peer in self.outcome.peers]

    @property
    def cost(self) -> dict[str, Any]:
        assert self.outcome.simulation is not None
        return dict(self.outcome.simulation)


@pytest.fixture
def play() -> Callable[..., Played]:
    return Played
