"""What a run's exchanges take of each peer: memory, in copies of what peers share, and messages.

Memory is bounded by how a peer is built, and the bound stands here. Messages are counted, in a
simulation of a few steps of the method on the run's own topology, with a model of two elements.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from coordinator.views import Layout
from peer.algorithms.core import Kind, View
from peer.algorithms.synchronous import Synchronous
from peer.config import build_algorithm
from peer.simulator.run import simulate
from peer.simulator.traffic import PerStep
from peer.views import views_of
from relayswarm.config import RunConfig, TaskConfig
from relayswarm.errors import ConfigError

STEPS = 16
"""Simulated ones: pairs meet at random, all other methods send the same in each step."""

_UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9}


@dataclass(frozen=True, slots=True)
class Footprint:
    """What exchanges take of a peer of the run.

    `memory_models` bounds its memory beyond training, in copies of what is shared; None for methods
    of pairs, of which no bound is known. `sent` and `received` are models a step: the mean over all
    peers, and the busiest peer's.
    """

    memory_models: int | None
    sent: PerStep
    received: PerStep

    def transfer_s(self, message_bytes: int, bits_per_s: float) -> float:
        """Seconds that the busiest peer's messages of a step take, each way at that rate."""
        models = max(self.sent.largest, self.received.largest)
        return models * message_bytes * 8 / bits_per_s


def footprint(config: RunConfig, layout: Layout) -> Footprint:
    """Of the peers of a run that begins with this topology."""
    cost = simulate(_tiny(config), None, lambda _: None).simulation
    assert cost is not None
    return Footprint(
        memory_bound(config, views_of(layout, correct_lr=False)),
        PerStep(**cost["models_sent_per_step"]),
        PerStep(**cost["models_received_per_step"]),
    )


def memory_bound(config: RunConfig, views: Iterable[View]) -> int | None:
    """Copies of what is shared that a peer holds at most, gradients and the optimizer's not
    included: the model and the method's registers; for each edge, and each vector of a message,
    last step's, which is still relayed, and this step's; what slow streams still read while it
    changes. None for methods of pairs."""
    algorithm = build_algorithm(_tiny(config), 0)  # as it is while steps go on
    if not isinstance(algorithm, Synchronous):
        return None
    edges = max(_edges(algorithm, view) for view in views)
    copies = (1 + algorithm.lag) * algorithm.sent_registers
    return 1 + len(algorithm.registers) + round(2 * edges * algorithm.sections) + copies


def _edges(algorithm: Synchronous, view: View) -> float:
    """Those of a peer that messages come over in some step; on one of two trees a half."""
    steps = range(view.n.bit_length() + 1)  # so many have met all partners of methods that change
    labels = [(step, round_) for step in steps for round_ in range(algorithm.rounds)]
    edges = {edge for label in labels for edge in algorithm.expects(view, label)}
    return len(edges) / len(view.trees) if algorithm.kind is Kind.RELAY else len(edges)


def _tiny(config: RunConfig) -> RunConfig:
    """The same topology and method, with next to nothing to learn and no faults."""
    kept = {"peers", "seed", "topology", "algorithm", "data"}
    tiny = RunConfig(task=TaskConfig(name="quadratics", options={"dimension": 2}), steps=STEPS)
    method = config.algorithm.model_copy(update={"time_budget_s": None, "quantize": None})
    data = config.data.model_copy(update={"partition": None, "alpha": None})
    changed = {name: getattr(config, name) for name in kept} | {"algorithm": method, "data": data}
    return tiny.model_copy(update=changed)


def bits_per_second(text: str) -> float:
    """A rate such as `100M`: a number, and perhaps k, M or G. Raises ConfigError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmg]?)", text.strip(), re.IGNORECASE)
    rate = float(match[1]) * _UNITS[match[2].lower()] if match else 0.0
    if rate <= 0:
        problem, remedy = "no rate above 0", "give bits per second, such as 100M or 2.5G"
        raise ConfigError("--bandwidth", text, problem, remedy)
    return rate
