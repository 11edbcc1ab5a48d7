"""The peers of a numerical trace: those of a learning run, on the quadratics of a file.

Algorithm, driver, registers, trainer and torch's optimizer are the daemons' own, in float64, on a
virtual clock and a network that loses exactly what the file says, with announcement.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from peer.algorithms.core import LIVE, Averaged, Head, PeerId, View
from peer.algorithms.pairwise import Pairwise
from peer.config import build_algorithm
from peer.simulator.learning_body import FormedRegisters, LearningBody
from peer.simulator.links import LosingLink
from peer.simulator.trace_problem import Floats, TraceProblem
from peer.simulator.world import World
from peer.tasks.quadratics import Point, ShardQuadratic
from peer.training.trainer import Trainer, make_site
from peer.wire_format import quantizer
from relayswarm.config import RunConfig
from relayswarm.task import Measured, Site, Task


class FileQuadratics(Task):
    """f_i(x) = ||A_i x + b_i||^2 of a file, full gradients; shard i is peer i's."""

    name = "file-quadratics"

    def __init__(self, problem: TraceProblem) -> None:
        super().__init__()
        self._problem = problem

    def optimizer_defaults(self) -> Mapping[str, Any]:
        return {"name": "sgd", "lr": 0.1, "momentum": 0.0, "schedule": "constant"}

    def model(self) -> nn.Module:
        point = Point(len(self._problem.x0))
        with torch.no_grad():
            point.x.copy_(torch.from_numpy(self._problem.x0))
        return point

    def data(self, site: Site) -> ShardQuadratic:
        return ShardQuadratic(self._problem.a[site.shard], self._problem.b[site.shard])

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        a, b = batch
        assert isinstance(model, Point)
        value: Tensor = (a @ model.x + b).square().sum()
        return value

    def evaluate(self, model: nn.Module, site: Site) -> dict[str, Measured]:  # noqa: ARG002
        """The loss of all shards."""
        assert isinstance(model, Point)
        x = model.x.detach().numpy()
        residuals = self._problem.a @ x + self._problem.b
        return {"loss": Measured(float((residuals**2).sum()) / self._problem.n)}


class ScheduledTrainer(Trainer):
    """A trainer whose rate at each of its steps is given, unless `rates` is None."""

    rates: Sequence[float] | None = None

    def lr(self, step: int) -> float:
        return super().lr(step) if self.rates is None else float(self.rates[step])


class TraceSwarm:
    """All peers of a trace. `rates(i)`: the rate of each step of peer i; None: the config's."""

    def __init__(
        self,
        problem: TraceProblem,
        config: RunConfig,
        views: Sequence[View],
        rates: Callable[[int], Sequence[float] | None],
    ) -> None:
        self._problem, self._config, self._views = problem, config, views
        self._world = World(LosingLink(self._loses))
        self._algorithms = [build_algorithm(config) for _ in views]
        self._registers: list[FormedRegisters] = []
        for i, view in enumerate(views):
            trainer = ScheduledTrainer(FileQuadratics(problem), config, make_site(config, i))
            trainer.rates = rates(i)
            self._add(view.me, i, trainer)

    def _add(self, peer: PeerId, i: int, trainer: Trainer) -> None:
        flat, algorithm = trainer.flat, self._algorithms[i]
        roles, rounding = algorithm.registers, quantizer(self._config)
        registers = FormedRegisters(flat.vector, roles, flat.parameters_end, rounding)
        self._registers.append(registers)
        self._world.add(peer, algorithm, LearningBody(trainer, registers, slow_down=1.0))

    def _loses(self, sender: PeerId, to: PeerId, head: Head) -> bool:
        drops = self._problem.drops
        return drops is not None and bool(drops[head.step, number_of(sender), number_of(to)])

    def by_steps(self) -> dict[str, Any]:
        """All models after each step, and the counts of their averages."""
        steps, (n, d) = self._config.steps, self._problem.b.shape
        x, counts = np.full((steps + 1, n, d), np.nan), np.zeros((steps, n), dtype=np.int64)
        x[0] = self._problem.x0

        def note(i: int, averaged: Averaged) -> None:
            x[averaged.step + 1, i] = self._register(LIVE, i)
            counts[averaged.step, i] = int(averaged.counted)

        for i, node in enumerate(self._world.nodes.values()):
            node.on_averaged = lambda averaged, i=i: note(i, averaged)
        self._run(self._world.all_finished)
        return {"x": x, "counts": counts}

    def by_interactions(self) -> dict[str, Any]:
        """The models that exchanges read and write, after each interaction."""
        pairs = self._problem.interactions
        assert pairs is not None
        moved: dict[tuple[int, int], Floats] = {}  # by interaction and peer
        left = {i: list(turns_of(pairs, i)) for i in range(self._problem.n)}

        def watch() -> bool:
            for i, peer in enumerate(self._algorithms):
                assert isinstance(peer, Pairwise)
                if len(turns_of(pairs, i)) - len(left[i]) < peer.turns_done:
                    moved[left[i].pop(0), i] = self._register(peer.shared.name, i)
            return not any(left.values())

        self._run(watch)
        return {"x": np.stack(list(self._frames(moved)))}

    def _frames(self, moved: Mapping[tuple[int, int], Floats]) -> Iterator[Floats]:
        assert self._problem.interactions is not None
        x = np.tile(self._problem.x0, (self._problem.n, 1))
        yield x
        for k, pair in enumerate(self._problem.interactions.tolist()):
            x = x.copy()
            for i in pair:
                x[i] = moved[k, i]
            yield x

    def _register(self, name: str, i: int) -> Floats:
        vector: Floats = self._registers[i][name].detach().numpy().copy()
        return vector

    def _run(self, until: Callable[[], bool]) -> None:
        self._world.publish(self._views)
        self._world.run(until)
        assert until(), "the agenda is empty, but the trace is not complete"


def number_of(peer: PeerId) -> int:
    """The integer that a peer of a trace is."""
    return int(peer.removeprefix("peer-"))


def turns_of(pairs: Any, i: int) -> list[int]:
    """The interactions that peer i takes part in."""
    turns: list[int] = np.flatnonzero((pairs == i).any(axis=1)).tolist()
    return turns
