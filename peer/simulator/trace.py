"""Numerical traces: every model after every step, on quadratics that come from a file.

For whoever wants to hold a method against their own implementation: `relayswarm simulate --trace`.
The peers are real ones (see `trace_swarm`); `trace_problem` says what the input holds. The result
is an .npz file:

    x       (T+1, n, d) float64: the start, and the models after each step; for pairwise methods
            (K+1, n, d): the models that exchanges read and write, after each interaction
    counts  (T, n), for methods with steps: the models in each average (of two trees the lesser)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from coordinator.gossip_weights import gossip_weights
from coordinator.graphs import Graph, GraphError, build_graph
from coordinator.topology import build_topology
from coordinator.trees import Tree
from coordinator.views import DEFAULT_WEIGHTS, METROPOLIS
from peer.algorithms import ALGORITHMS
from peer.algorithms.allreduce import AllReduce
from peer.algorithms.core import Coef, PeerId, View
from peer.algorithms.gossip import Gossip
from peer.algorithms.relaying import Relaying
from peer.algorithms.sgp import SGP
from peer.config import check_algorithm, is_pairwise
from peer.simulator.exact import views
from peer.simulator.trace_problem import TraceProblem, load_problem, refuse, tree_of
from peer.simulator.trace_swarm import TraceSwarm, turns_of
from relayswarm.config import RunConfig, parse
from relayswarm.errors import ConfigError

MEANINGFUL = ("algorithm.", "optimizer.")  # settings that make a difference to a trace
DEADLINE_S = 1e12  # virtual: nothing is ever late


def run_trace(
    problem: Path,
    algorithm: str | None,
    steps: int | None,
    lr: float | None,
    overrides: Sequence[str],
    out: Path,
) -> None:
    """Run `algorithm` for `steps` steps at rate `lr` on the problem of a file; write the trace.

    Pairwise methods run the file's interactions in place of steps. Raises ConfigError, naming the
    array or setting, for anything that does not fit.
    """
    loaded = load_problem(problem)
    arrays = trace(loaded, _config(loaded, algorithm, steps, lr, overrides))
    try:
        with out.open("wb") as file:
            np.savez(file, **arrays)
    except OSError as error:
        remedy = "choose a file that can be written"
        raise ConfigError("--trace", str(out), f"cannot be written ({error})", remedy) from error


def trace(problem: TraceProblem, config: RunConfig) -> dict[str, Any]:
    """The arrays of the trace. Raises ConfigError for a topology that does not fit the method."""
    swarm = TraceSwarm(problem, config, _views(problem, config), _rates(problem, config))
    return swarm.by_interactions() if is_pairwise(config.algorithm.name) else swarm.by_steps()


def _method(config: RunConfig) -> type[Any]:
    return ALGORITHMS[config.algorithm.name][0]


# --- what was asked for ---------------------------------------------------------------------------


def _config(
    problem: TraceProblem,
    algorithm: str | None,
    steps: int | None,
    lr: float | None,
    overrides: Sequence[str],
) -> RunConfig:
    for override in overrides:
        if not override.strip().startswith(MEANINGFUL):
            remedy = "set algorithm.* or optimizer.*"
            raise ConfigError("--set", override, "makes no difference to a trace", remedy)
    settings = [*overrides, f"peers={problem.n}", f"transport.deadline_s={DEADLINE_S}"]
    settings += [f"algorithm.name={json.dumps(algorithm)}"] if algorithm else []
    settings += [f"optimizer.lr={lr}"] if lr is not None else []
    settings += [f"steps={steps}"] if steps is not None else []
    config = parse("", settings)
    check_algorithm(config)
    budget_s = config.algorithm.time_budget_s
    if budget_s:
        text = "a trace has no time, but interactions with local steps"
        raise ConfigError("algorithm.time_budget_s", budget_s, text, "leave it out")
    if config.algorithm.neighbour_weights:
        weights, text = config.algorithm.neighbour_weights, "a trace's file says who calls whom"
        raise ConfigError("algorithm.neighbour_weights", weights, text, "leave it out")
    if is_pairwise(config.algorithm.name):
        settings.append(f"algorithm.options.script={json.dumps(_script(problem, config))}")
        return parse("", settings)
    if steps is None:
        raise ConfigError("--steps", None, "missing", "say how many steps to take")
    _check_length("drops", problem.drops, steps, "steps")
    _check_length("lr", problem.lr, steps, "steps")
    return config


def _script(problem: TraceProblem, config: RunConfig) -> list[tuple[PeerId, PeerId, int]]:
    pairs, counts = problem.interactions, problem.interaction_steps
    if pairs is None or not len(pairs):
        remedy = f"add some: {config.algorithm.name} goes from interaction to interaction"
        raise refuse("interactions", None, "missing", remedy)
    if problem.drops is not None and problem.drops.any():
        raise refuse("drops", "some", "pairwise methods have no steps to lose", "leave it out")
    _check_length("interaction_steps", counts, len(pairs), "interactions")
    _check_length("lr", problem.lr, len(pairs), "interactions")
    usual = [config.algorithm.local_steps] * len(pairs)
    rows = zip(pairs.tolist(), usual if counts is None else counts.tolist(), strict=True)
    return [(f"peer-{i}", f"peer-{j}", count) for (i, j), count in rows]


def _check_length(name: str, array: Any, wanted: int, of: str) -> None:
    if array is not None and len(array) != wanted:
        problem, remedy = f"there are {wanted} {of}", f"give {wanted} rows"
        raise refuse(name, f"shape {array.shape}", problem, remedy)


def _rates(problem: TraceProblem, config: RunConfig) -> Callable[[int], Sequence[float] | None]:
    """Each peer's rates by its own steps. In pairwise methods it trains for the interactions that
    it initiates, in their blocking form for all its own."""
    lr, pairs = problem.lr, problem.interactions
    if lr is None:
        return lambda _: None
    if not is_pairwise(config.algorithm.name):
        return lambda _: lr.tolist()
    assert pairs is not None
    trains_for = pairs if config.algorithm.blocking else pairs[:, :1]
    return lambda i: lr[turns_of(trains_for, i)].tolist()


# --- topology -------------------------------------------------------------------------------------


def _views(problem: TraceProblem, config: RunConfig) -> list[View]:
    method, n = _method(config), problem.n
    if issubclass(method, Relaying | AllReduce):
        trees = problem.trees or (_tree(problem, spanning=issubclass(method, AllReduce)),)
        factor = trees[0].lr_factor(overlap=bool(config.algorithm.overlap))
        return views(trees, lr_scale=factor if config.optimizer.relay_lr_correction else 1)
    if issubclass(method, Gossip):
        graph = _graph(problem)
        return views(graph=graph, weights=_weights(config, graph))
    if issubclass(method, SGP) and n.bit_count() != 1:
        reason, remedy = f"{n} peers are not a power of two", "give 2^k peers, or another method"
        raise ConfigError("algorithm.name", config.algorithm.name, reason, remedy)
    return views(graph=problem.graph or build_graph("complete", n))


def _graph(problem: TraceProblem) -> Graph:
    if problem.graph is None:
        raise refuse("edges", None, "missing", "add the edges of the communication graph")
    return problem.graph


def _tree(problem: TraceProblem, *, spanning: bool) -> Tree:
    """The graph, which must be a tree; where any tree will do, one that spans it."""
    graph = _graph(problem)
    if spanning and len(graph.edges) != graph.n - 1:
        return build_topology(graph).trees[0]
    return tree_of(graph.n, graph)


def _weights(config: RunConfig, graph: Graph) -> dict[int, dict[int, Coef]]:
    name = config.algorithm.weights or DEFAULT_WEIGHTS.get(config.algorithm.name, "metropolis")
    try:
        weights = gossip_weights(graph, METROPOLIS if name == "metropolis" else name)
    except GraphError as error:
        raise ConfigError("algorithm.weights", name, error.problem, error.remedy) from error
    return {i: {j: float(w) for j, w in row.items()} for i, row in weights.items()}
