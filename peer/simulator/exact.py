"""Exact arithmetic for the simulated world: vectors of fractions, quadratic losses, views by hand.

With these a paper's identity holds with `==`, where floating point would need a tolerance that
could hide a mistake.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from typing import Any, TypeAlias

from coordinator.graphs import Graph
from coordinator.trees import Tree
from peer.algorithms import build
from peer.algorithms.core import (
    LIVE,
    Algorithm,
    Coef,
    Epoch,
    Head,
    Kind,
    Lin,
    Message,
    PeerId,
    Reg,
    Role,
    Run,
    Set,
    Train,
    Trained,
    View,
)
from peer.simulator.world import Node, World

Vector: TypeAlias = tuple[Fraction, ...]


class ExactVectors:
    """One peer's registers as tuples of fractions: `peer.driver.Vectors`.

    From `parameters_end` on (None: nowhere) coordinates stand for float buffers.
    """

    def __init__(
        self, live: Vector, roles: Mapping[str, Role], parameters_end: int | None = None
    ) -> None:
        self.registers = {LIVE: live, **{name: (Fraction(0),) * len(live) for name in roles}}
        self._roles = roles
        self._parameters_end = len(live) if parameters_end is None else parameters_end
        self._trees = 1

    def __getitem__(self, name: str) -> Vector:
        return self.registers[name]

    def split(self, trees: int) -> None:
        self._trees = max(trees, 1)

    def set(self, reg: Reg, lin: Lin, tree: int | None = None) -> None:
        start, stop = self._span(tree)
        old = self.registers[reg.name]
        new = [*old[:start], *self._evaluate(lin, start, stop), *old[stop:]]
        if self._roles.get(reg.name) is Role.CORRECTION:
            new[self._parameters_end :] = [Fraction(0)] * (len(old) - self._parameters_end)
        self.registers[reg.name] = tuple(new)

    def set_together(self, sets: Sequence[Set]) -> None:
        for one in sets:
            self.set(one.reg, one.lin, one.tree)

    def quantize(self, reg: Reg, lin: Lin, to: PeerId, head: Head) -> None:  # noqa: ARG002
        """Fractions need no rounding."""
        self.set(reg, lin)

    def apart(self, lin: Lin) -> None:
        """Of no effect on Q."""

    def norm(self, lin: Lin, tree: int | None = None) -> float:
        return math.sqrt(sum(x**2 for x in self._evaluate(lin, *self._span(tree))))

    def outgoing(self, lins: tuple[Lin, ...], head: Head) -> tuple[Vector, ...]:
        start, stop = self._span(head.tree if head.kind is Kind.RELAY else None)
        return tuple(self._evaluate(lin, start, stop) for lin in lins)

    def about_to_write(self, name: str) -> None:
        """Nobody reads late: `outgoing` has formed its value."""

    def _span(self, tree: int | None) -> tuple[int, int]:
        d = len(self.registers[LIVE])
        half = (d + 1) // 2
        if tree is None or self._trees == 1:
            return (0, d)
        return (0, half) if tree == 0 else (half, d)

    def _evaluate(self, lin: Lin, start: int, stop: int) -> Vector:
        total = [Fraction(0)] * (stop - start)
        for coef, ref in lin.terms:
            part = self._part(ref, start, stop)
            total = [a + Fraction(coef) * b for a, b in zip(total, part, strict=True)]
        return tuple(a / Fraction(lin.divisor) for a in total)

    def _part(self, ref: Reg | Message, start: int, stop: int) -> Vector:
        if isinstance(ref, Message):
            payload: Vector = ref.payload
            return payload
        return self.registers[ref.name][start:stop]


class ExactBody:
    """A simulated peer that descends on sum over k of curvature_k / 2 (x_k - target_k)^2.

    `local_steps` steps at rate `lr`; a coordinate of curvature 0 stays as it is. With quasi-global
    momentum m a step is -lr (g + b (b m + g)), b being `momentum`. `updates` keeps the movement of
    every step, in order. With `sample` training is no descent, but sets x to `sample(step)`.
    """

    def __init__(
        self,
        vectors: ExactVectors,
        target: Vector,
        lr: Coef,
        *,
        curvature: Vector | None = None,
        local_steps: int = 1,
        momentum: Coef = 0,
        sample: Callable[[int], Vector] | None = None,
        duration_s: Callable[[int], float] = lambda step: 1.0,  # noqa: ARG005
    ) -> None:
        self.vectors = vectors
        self.updates: list[Vector] = []
        self._target = target
        self._lr = Fraction(lr)
        self._curvature = curvature or (Fraction(1),) * len(target)
        self._local_steps = local_steps
        self._momentum = Fraction(momentum)
        self._sample = sample
        self._duration_s = duration_s

    def train(self, effect: Train) -> Trained:
        assert not effect.budget_s, "its steps have no length of their own"
        before = self.vectors[LIVE]
        rate = self._lr * Fraction(effect.lr_scale)
        after = self._sample(effect.step) if self._sample else self._descend(before, rate, effect)
        self.updates.append(tuple(b - a for a, b in zip(before, after, strict=True)))
        self.vectors.registers[LIVE] = after
        taken = self._local_steps if effect.local_steps is None else len(effect.local_steps)
        return Trained(effect.step, rate, taken)

    def duration_s(self, effect: Train) -> float:
        return self._duration_s(effect.step)

    def letter(self, head: Head, outgoing: tuple[Vector, ...]) -> tuple[Head, tuple[Vector, ...]]:
        return head, outgoing

    def _descend(self, x: Vector, rate: Fraction, effect: Train) -> Vector:
        b = self._momentum
        m = self.vectors[effect.momentum.name] if effect.momentum else (Fraction(0),) * len(x)
        for _ in effect.local_steps or range(self._local_steps):
            g = [c * (x_k - t) for x_k, c, t in zip(x, self._curvature, self._target, strict=True)]
            if effect.momentum:
                g = [g_k + b * (b * m_k + g_k) for g_k, m_k in zip(g, m, strict=True)]
            x = tuple(x_k - rate * g_k for x_k, g_k in zip(x, g, strict=True))
        return x


def views(
    trees: Sequence[Tree] = (),
    graph: Graph | None = None,
    weights: Mapping[int, Mapping[int, Coef]] | None = None,
    *,
    peer_weights: Sequence[Coef] = (),
    epoch: Epoch | None = None,
    effective_step: int = 0,
    lr_scale: Coef = 1,
    name: Callable[[int], PeerId] = "peer-{}".format,
) -> list[View]:
    """The views of all peers of an epoch: trees to relay on, or a graph with mixing weights.
    `peer_weights` are what models weigh, if they do not weigh the same."""
    n = trees[0].n if trees else graph.n if graph else 0
    members = {name(i): 1 for i in range(n)}
    return [
        View(
            epoch=epoch or Epoch(1, 1),
            effective_step=effective_step,
            me=name(i),
            members=members,
            trees=tuple({name(j): c for j, c in tree.behind(i).items()} for tree in trees),
            neighbours=tuple(name(j) for j in graph.neighbours(i)) if graph else (),
            mixing={name(j): w for j, w in weights[i].items()} if weights else {},
            lr_scale=lr_scale,
            diameter=max((tree.diameter for tree in trees), default=0),
            weights={name(j): w for j, w in enumerate(peer_weights)},
            weight_behind=tuple(
                {name(j): w for j, w in tree.weight_behind(i, peer_weights).items()}
                for tree in trees
                if peer_weights
            ),
        )
        for i in range(n)
    ]


@dataclass(frozen=True)
class Problem:
    """What the peers of an exact swarm learn: peer i starts at `starts[i]` and descends toward
    `targets[i]`. See `ExactBody`."""

    starts: Sequence[Vector]
    targets: Sequence[Vector]
    lr: Coef = Fraction(1, 2)
    curvature: Vector | None = None
    local_steps: int = 1
    parameters_end: int | None = None
    momentum: Coef = 0
    sample: Callable[[int, int], Vector] | None = None  # peer, step -> what training leaves in x


def one_second(i: int, step: int) -> float:  # noqa: ARG001
    """All take the same time."""
    return 1.0


class ExactSwarm:
    """Peers with exact vectors in a simulated world, who have got their first view.

    `duration_s(i, step)` is how long peer i trains, in virtual seconds. `wrap` may put something
    around each algorithm (see `event_log`).
    """

    def __init__(
        self,
        name: str,
        views: Sequence[View],
        run: Run,
        problem: Problem,
        *,
        options: Mapping[str, Any] | None = None,
        duration_s: Callable[[int, int], float] = one_second,
        world: World | None = None,
        wrap: Callable[[PeerId, Algorithm], Algorithm] | None = None,
    ) -> None:
        self.world = world or World()
        self.algorithms = [build(name, options or {}, run) for _ in views]
        self.bodies: list[ExactBody] = []
        self.models: list[list[Vector]] = []  # of each peer, after each averaging
        for i, (view, algorithm) in enumerate(zip(views, self.algorithms, strict=True)):
            body = _body(i, algorithm, problem, duration_s)
            driven = wrap(view.me, algorithm) if wrap else algorithm
            self.bodies.append(body)
            self._follow(self.world.add(view.me, driven, body), body)
        self.world.publish(views)

    def _follow(self, node: Node, body: ExactBody) -> None:
        models: list[Vector] = []
        node.on_averaged = lambda _: models.append(body.vectors[LIVE])
        self.models.append(models)

    @property
    def nodes(self) -> list[Node]:
        """The peers, in order."""
        return list(self.world.nodes.values())

    def run(self) -> ExactSwarm:
        """Go on until all peers have finished; fails if they never do."""
        self.world.run(self.world.all_finished)
        assert self.world.all_finished(), "the agenda is empty, but some peers have not finished"
        return self


def _body(
    i: int, algorithm: Algorithm, problem: Problem, duration_s: Callable[[int, int], float]
) -> ExactBody:
    vectors = ExactVectors(problem.starts[i], algorithm.registers, problem.parameters_end)
    return ExactBody(
        vectors,
        problem.targets[i],
        problem.lr,
        curvature=problem.curvature,
        local_steps=problem.local_steps,
        momentum=problem.momentum,
        sample=partial(problem.sample, i) if problem.sample else None,
        duration_s=partial(duration_s, i),
    )
