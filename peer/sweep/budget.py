"""What a combination asks of its peers, measured before it is run, and held against a budget.

The traffic of a method depends on the method and the graph, not on what is learnt. So a few steps
of the same swarm on a tiny problem, without faults, tell it to the last model.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from peer.simulator.run import simulate
from peer.sweep.grid import Cell
from relayswarm.config import FaultsConfig, OptimizerConfig, RunConfig, TaskConfig
from relayswarm.errors import ConfigError

PROBE_STEPS = 32
BUDGETS = {
    "models_per_step": "the most models that a peer sends or receives in a step, on average",
    "message_rounds_per_step": "messages that the swarm waits for in a step, one after the other",
}


def parse_budgets(texts: Iterable[str]) -> dict[str, float]:
    """`NAME=NUMBER`, each name once. Raises ConfigError."""
    budgets: dict[str, float] = {}
    for text in texts:
        name, _, value = text.partition("=")
        try:
            limit = float(value)
        except ValueError:
            limit = math.nan
        if name not in BUDGETS or not limit > 0:
            known = "; ".join(f"{name}: {meaning}" for name, meaning in BUDGETS.items())
            raise ConfigError("--budget", text, "not of the form NAME=NUMBER", f"names: {known}")
        budgets[name] = limit
    return budgets


def check_budgets(cells: Iterable[Cell], budgets: Mapping[str, float]) -> None:
    """Raise ConfigError that names every combination that asks for more than a budget allows.

    Each is probed with its first seed. A method that draws its partners at random may exceed the
    budget by three standard errors of the probe.
    """
    first: dict[str, Cell] = {}
    for cell in cells:
        first.setdefault(cell.combination, cell)
    over = [
        f"{name} needs {text}"
        for name, cell in first.items()
        if budgets and (text := excess(cell.config, budgets))
    ]
    if over:
        limits = ", ".join(f"{name}={limit:g}" for name, limit in budgets.items())
        remedy = "leave out what is over it, or raise it"
        raise ConfigError("--budget", limits, "; ".join(over), remedy)


def excess(config: RunConfig, budgets: Mapping[str, float]) -> str:
    """What of it is over a budget, for people; empty if nothing is."""
    needs, halfway = probe(config, PROBE_STEPS), probe(config, PROBE_STEPS // 2)
    parts = []
    for name, limit in budgets.items():
        is_random = not math.isclose(needs[name], halfway[name])
        allowed = limit + (3 * math.sqrt(limit / PROBE_STEPS) if is_random else 0)
        if needs[name] > allowed + 1e-9:
            parts.append(f"{needs[name]:.4g} {name.replace('_', ' ')}")
    return " and ".join(parts)


def probe(config: RunConfig, steps: int) -> dict[str, float]:
    """The measures that budgets are for, on a tiny problem."""
    tiny = config.model_copy(
        update={
            "steps": steps,
            "task": TaskConfig(name="quadratics", options={"dimension": 4}),
            "optimizer": OptimizerConfig(name="sgd", lr=1e-3),
            "faults": FaultsConfig(),
            "data": config.data.model_copy(update={"alpha": None, "shards": None}),
            "evaluation": config.evaluation.model_copy(update={"every": 0}),
        }
    )
    cost: Mapping[str, Any] = simulate(tiny, None, lambda _: None).simulation or {}
    both = (cost["models_sent_per_step"], cost["models_received_per_step"])
    return {
        "models_per_step": max(part["largest"] for part in both),
        "message_rounds_per_step": cost["message_rounds_per_step"],
    }
