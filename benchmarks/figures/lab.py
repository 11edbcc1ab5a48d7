"""Many experiments with one swarm at a time: problems and rates side by side in its vectors.

What an algorithm decides never depends on a vector's value, so a swarm whose vectors are many
models in a row runs that many experiments at once: the product's state machines, world and stacked
table, with full gradients of random quadratics (RelaySGD paper, appendix B.4) as local steps.

Shapes: P problems (seeds, heterogeneities), R rates for each, n peers, d dimensions. A peer's flat
vector is (P, R, d) in that order.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import TypeAlias, cast

import numpy as np
import torch
from torch import Tensor

from coordinator.graph_files import LabelledGraph
from coordinator.views import lay_out
from peer.codec import Format
from peer.config import build_algorithm
from peer.faults import FaultPlan
from peer.simulator.planned import PlannedLink
from peer.simulator.stacked import Bodies, ByStep, StackedSwarm
from peer.simulator.stacked_training import LocalSteps
from peer.simulator.table import Table
from peer.simulator.traffic import Cost, Meter
from peer.simulator.world import World
from peer.tasks.quadratics import Problem, QuadraticsOptions, generate
from peer.views import peer_ids, views_of
from relayswarm.config import RunConfig, validate

LocalUpdate: TypeAlias = Callable[[Sequence[int], int, float, Tensor], None]
"""Of those peers at that step, with that scale of the rate: moves models (len(peers), D) in place.
"""

Watch: TypeAlias = Callable[[int, Tensor], bool]
"""Gets the number of steps done and all live models (n, D); True ends the run."""

RATE_IN_MESSAGES = {"dpsgd-qgm"}  # their combinations depend on the rate: one rate at a time


def swarm_config(algorithm: str, graph: str, peers: int, steps: int, **rest: object) -> RunConfig:
    """A run config; `rest` may add sections, or keys to `algorithm` as `options`."""
    more = cast(dict[str, object], rest.pop("options", {}))
    chosen = {"name": algorithm, **more}
    tree = {"peers": peers, "steps": steps, "algorithm": chosen, "topology": {"graph": graph}}
    return validate({**tree, **rest})


def problems(
    peers: int, seeds: Sequence[int] = (0,), zeta_squared: Sequence[float] = (1.0,), r0: float = 10
) -> list[Problem]:
    """Random quadratics with L = 1, mu = 0.5, d = 10: for each heterogeneity all seeds."""
    return [
        generate(QuadraticsOptions(heterogeneity=zeta, distance=r0), peers, seed)
        for zeta, seed in itertools.product(zeta_squared, seeds)
    ]


class Quadratics:
    """Local steps on P problems with R rates each: `rates` has shape (P, R).

    `noise` is sigma^2 = E ||noise||^2 of each gradient, the same for all rates of a problem.
    """

    def __init__(
        self,
        chosen: Sequence[Problem],
        rates: Tensor,
        local_steps: int = 1,
        noise: float = 0.0,
        seed: int = 0,
    ) -> None:
        a = torch.from_numpy(np.stack([p.a for p in chosen]))  # (P, n, d, d)
        b = torch.from_numpy(np.stack([p.b for p in chosen]))  # (P, n, d)
        self._hessian = 2 * torch.einsum("pnki,pnkj->npij", a, a)
        self._offset = 2 * torch.einsum("pnki,pnk->npi", a, b)[:, :, None, :]
        self._mean_hessian = self._hessian.mean(0)
        self._x_star = torch.from_numpy(np.stack([p.x_star for p in chosen]))
        self._rates = rates.to(torch.float64)[None, :, :, None]
        self._local_steps = local_steps
        self._noise = noise
        self._random = torch.Generator().manual_seed(seed)
        self.shape = (len(chosen), rates.shape[1], a.shape[-1])  # (P, R, d)

    def __call__(self, peers: Sequence[int], step: int, lr_scale: float, models: Tensor) -> None:  # noqa: ARG002
        x = models.view(len(peers), *self.shape)
        hessian, offset = self._hessian[list(peers)], self._offset[list(peers)]
        for _ in range(self._local_steps):
            gradient = x @ hessian + offset  # Hessians are symmetric
            if self._noise:
                gradient += self._draw(gradient)
            x -= self._rates * lr_scale * gradient

    def _draw(self, like: Tensor) -> Tensor:
        n, p, _, d = like.shape
        normal = torch.randn((n, p, 1, d), generator=self._random, dtype=like.dtype)
        noise: Tensor = normal * math.sqrt(self._noise / d)
        return noise

    def suboptimality(self, models: Tensor) -> Tensor:
        """f(x) - f(x*) of models (..., D), shape (..., P, R)."""
        error = models.view(*models.shape[:-1], *self.shape) - self._x_star[:, None, :]
        twice: Tensor = ((error @ self._mean_hessian) * error).sum(-1)
        return twice / 2


class _Enough(Exception):
    """Whoever watches has seen enough. No error: it ends the run from within."""


class _Steps:
    """The local steps as a stacked swarm asks for them: it calls nothing but `train`."""

    def __init__(self, update: LocalUpdate) -> None:
        self._update = update

    def train(
        self,
        peers: Sequence[int],
        step: int,
        lr_scale: float,
        models: Tensor,
        momenta: Tensor | None = None,  # noqa: ARG002
        local_steps: range | None = None,  # noqa: ARG002
        at: int | None = None,  # noqa: ARG002
    ) -> list[float]:
        self._update(peers, step, lr_scale, models)
        return [0.0] * len(peers)


def run(
    config: RunConfig,
    update: LocalUpdate,
    elements: int,
    watch: Watch,
    graph: LabelledGraph | None = None,
) -> Cost:
    """Run the swarm of `config` with models of so many elements, which start as zeros.

    `watch` sees all live models whenever another step has been done by every peer; `graph` is what
    `topology.file` would hold. Returns what the run cost, as if each element were one of a model.
    """
    if config.algorithm.name in RATE_IN_MESSAGES:
        raise ValueError(f"{config.algorithm.name}: what peers send depends on the rate")
    members = peer_ids(config.peers)
    plan = FaultPlan(config.faults, config.seed)
    meter = Meter(elements, Format.FLOAT64)
    world = World(PlannedLink(plan), traffic=meter)
    views = list(views_of(lay_out(config, members, graph), correct_lr=False))
    roles = list(build_algorithm(config).registers.values())
    start = torch.zeros(elements, dtype=torch.float64)
    trees = len(views[0].trees)
    table = Table(start, config.peers, roles, trees, Format.FLOAT64, elements)
    bodies = Bodies(lambda step: 1.0, [plan.slow_down(peer) for peer in members])  # noqa: ARG005
    steps = cast(LocalSteps, _Steps(update))
    swarm = StackedSwarm(config, views, steps, table, world, meter, bodies)
    swarm.after_plan = _Watched(config.peers, table, watch)
    try:
        swarm.run()
    except _Enough:
        swarm.account()
    return meter.cost(swarm.end_s, swarm.depth)


class _Watched:
    """Calls `watch` once for each step that the slowest peer has done."""

    def __init__(self, peers: int, table: Table, watch: Watch) -> None:
        self._done = [0] * peers
        self._seen = 0
        self._table, self._watch = table, watch

    def __call__(self, averaged: ByStep, shift: int) -> None:
        for step, effects in averaged.items():
            for peer, _ in effects:
                self._done[peer] = step + shift + 1
        if min(self._done) > self._seen:
            self._seen = min(self._done)
            if self._watch(self._seen, self._table.models()):
                raise _Enough


def suboptimality_curves(
    config: RunConfig,
    chosen: Sequence[Problem],
    rates: Tensor,
    *,
    until: Callable[[Tensor], bool] | None = None,
    noise: float = 0.0,
    graph: LabelledGraph | None = None,
    of_peers: bool = False,
) -> Tensor:
    """f(mean of the models) - f(x*) before the first step and after each, (steps + 1, P, R).

    `of_peers`: the mean over the peers of f(x_i) - f(x*) in its place. `until` gets what there is
    so far, and ends the runs when it says True.
    """
    descent = Quadratics(chosen, rates, config.algorithm.local_steps, noise, config.seed)
    p, r, d = descent.shape
    curve = torch.full((config.steps + 1, p, r), torch.nan, dtype=torch.float64)
    curve[0] = descent.suboptimality(torch.zeros(p * r * d, dtype=torch.float64))
    last = 0

    def watch(steps: int, models: Tensor) -> bool:
        nonlocal last
        if of_peers:
            curve[last + 1 : steps + 1] = descent.suboptimality(models).mean(0)
        else:
            curve[last + 1 : steps + 1] = descent.suboptimality(models.mean(0))
        last = steps
        return until is not None and until(curve[: last + 1])

    run(config, descent, p * r * d, watch, graph)
    return curve[: last + 1]
