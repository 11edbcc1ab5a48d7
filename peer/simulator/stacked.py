"""The simulator for large swarms: all peers' vectors in one tensor, a step of all in a few calls.

The state machines run as ever, but on symbols: what they would compute is recorded as plans
(`plan`), which are carried out on a table of vectors (`table`), with stacked training
(`stacked_training`). Algorithms know nothing of it. Once plans repeat, as algorithms promise and
two cycles have shown, the remaining steps follow the recorded plans without the machines.
Messages' counts may still grow by then: coefficients are recorded as what they follow from
(`counts`), so that a chain of a thousand peers needs no more recorded steps than a star.

Results agree with one object per peer up to rounding: sums are formed in another order. With
`deterministic = true` they agree bit for bit: peers train one after another, each with a trainer of
its own, and sums are formed as written. Where peers crash, there is no table.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor

from peer.algorithms.core import LIVE, Algorithm, Averaged, PeerId, View
from peer.config import build_algorithm
from peer.simulator.counts import number
from peer.simulator.plan import History, Plan, Recorder, Training
from peer.simulator.stacked_training import LocalSteps
from peer.simulator.symbolic import SymbolicBody, SymbolicVectors
from peer.simulator.table import Step, Table
from peer.simulator.traffic import Meter
from peer.simulator.world import Node, World
from relayswarm.config import FaultsConfig, RunConfig

Counts: TypeAlias = tuple[Counter[PeerId], ...]
ByStep: TypeAlias = Mapping[int, Sequence[tuple[int, Averaged]]]
"""Who completed a step, and how."""


@dataclass(frozen=True, slots=True)
class Group:
    """Peers that train the same step at the same rate; `chosen` is None if it is all of them."""

    peers: Sequence[int]
    chosen: Tensor | None
    ahead: int  # of the plan's base
    lr_scale: float
    local_steps: range | None
    at: int | None  # in the schedule, if not at its step
    momenta: Tensor | None


@dataclass(frozen=True, slots=True)
class Compiled:
    """A plan in the form in which it is carried out, and what the world counted meanwhile."""

    plan: Plan
    averaged: ByStep
    groups: Sequence[Group]
    stages: Sequence[Sequence[Step]]
    counts: Counts
    duration_s: float  # virtual
    depth: int

    @property
    def is_sound(self) -> bool:
        """Whether all numbers came, when it was recorded, to what they are said to follow from."""
        return all(step.is_sound for stages in self.stages for step in stages)


@dataclass(frozen=True, slots=True)
class Bodies:
    """The schedule's rate of a step, and each peer's virtual seconds for an optimizer step."""

    rate: Callable[[int], float]
    local_step_s: Sequence[float]


def _nothing(*told: object) -> None:
    """Nobody listens."""


class _Repeats(Exception):
    """From here on the plans repeat. No error: it ends the world's loop from within."""


def may_repeat(config: RunConfig) -> bool:
    """Whether nothing disturbs a run, and its method promises ever to repeat its effects."""
    undisturbed = config.faults == FaultsConfig(loss=config.faults.loss)
    return undisturbed and type(build_algorithm(config)).period is not Algorithm.period


class StackedSwarm:
    """A swarm of `views` in `world`, to which its peers are added here. Peers are numbers.

    `losses` are the latest of each peer, `expected` and `missed` the messages of the run so far
    (those of replayed steps are added in the end). `meter` is the world's.
    `before_training(peers, step)` is called before a step's training, `after_plan(averaged, shift)`
    when a plan has been carried out, with the peers that averaged and the number of steps by which
    this is later than the plan says.
    """

    def __init__(
        self,
        config: RunConfig,
        views: Sequence[View],
        steps: LocalSteps,
        table: Table,
        world: World,
        meter: Meter,
        bodies: Bodies,
    ) -> None:
        self._views, self._steps, self.table = views, steps, table
        self._world, self._meter = world, meter
        self._rate = bodies.rate
        self._total_steps = config.steps
        self._may_repeat = may_repeat(config)
        self._step_s = max(bodies.local_step_s) * config.algorithm.local_steps
        self._history = History(len(views))
        self._recent: dict[int, Compiled] = {}  # by the step of the plan
        self._counted = meter.counts()
        self._closed_at = 0.0
        self._models_counted: tuple[int, dict[int, list[int]]] = (0, {})  # by the step recorded
        self._pending: Counter[int] = Counter()  # steps replayed that are not accounted for yet
        self._cycle: Sequence[Compiled] = ()
        self.depth = 0  # messages in the longest chain that somebody had to wait for
        self.replayed = 0  # steps done without state machines
        self.losses: dict[int, float] = {}
        self.expected: Counter[int] = Counter()
        self.missed: Counter[int] = Counter()
        self.timed_out: Counter[int] = Counter()
        self.waited_s: defaultdict[int, float] = defaultdict(float)
        self.before_training: Callable[[Sequence[int], int], None] = _nothing
        self.after_plan: Callable[[ByStep, int], None] = _nothing
        self._add_peers(config, bodies)

    def run(self) -> None:
        """To the end, or until nothing can come any more."""
        try:
            self._world.publish(self._views)
            self._follow(self._period())
            self._world.run(self._world.all_finished)
            self._recorder.close()
        except _Repeats:
            self._replay()
            self.account()

    @property
    def end_s(self) -> float:
        """Virtual time at which the last peer finished."""
        if self.replayed:
            return self._closed_at - self._step_s  # a step closes when the next one is trained
        ends = [node.finished_at for node in self._world.nodes.values()]
        return max((end for end in ends if end is not None), default=0.0)

    def finished(self, peer: int) -> bool:
        """Whether a peer has done all its steps."""
        return bool(self.replayed) or self._node(peer).finished_at is not None

    def steps_done(self, peer: int) -> int:
        """How many steps a peer has done."""
        return self._total_steps if self.replayed else self._node(peer).algorithm.step

    def algorithm(self, peer: int) -> Algorithm:
        """Of a peer that has not finished."""
        return self._node(peer).algorithm

    def counted(self, recorded: int, effects: Sequence[tuple[int, Averaged]]) -> Sequence[int]:
        """The models counted by those who averaged in the plan that was just carried out, for
        that step."""
        version, known = self._models_counted
        if version != self.table.version or not self.replayed:
            known = {}
            self._models_counted = (self.table.version, known)
        if recorded not in known:
            known[recorded] = self.table.counts([number(e.counted) for _, e in effects])
        return known[recorded]

    def account(self) -> None:
        """Bring what the meter counts up to date."""
        for k, times in self._pending.items():
            self._meter.add(self._cycle[k].counts, times)
        self._pending.clear()

    def _node(self, peer: int) -> Node:
        return self._world.nodes[self._views[peer].me]

    def _add_peers(self, config: RunConfig, bodies: Bodies) -> None:
        algorithms = [build_algorithm(config) for _ in self._views]
        names = [LIVE, *algorithms[0].registers]
        widths = tuple(b - a for a, b in self.table.spans)
        self._recorder = Recorder(len(self._views), names, len(widths), self._planned)
        for k, (view, algorithm) in enumerate(zip(self._views, algorithms, strict=True)):
            body = SymbolicBody(
                SymbolicVectors(self._recorder, k, widths),
                self._recorder,
                k,
                bodies.rate,
                bodies.local_step_s[k],
                config.algorithm.local_steps,
                partial(self._meter.trained, view.me, config.algorithm.local_steps),
            )
            node = self._world.add(view.me, algorithm, body)
            node.on_averaged = partial(self._recorder.averaged, k)

    # --- plans -------------------------------------------------------------------------------

    def _planned(self, plan: Plan) -> None:
        """A segment is complete: carry it out, and see whether it repeats."""
        compiled = self._compiled(plan)
        self._expect(plan, 1)
        self._carry_out(compiled, 0)
        period = self._period()
        self._follow(period)
        cycle = self._history.add(plan, period if compiled.is_sound else None)
        self._recent[plan.base] = compiled
        self._recent = {p.base: self._recent[p.base] for p in self._history.plans}
        if cycle:
            self._cycle = [self._recent[p.base] for p in cycle]
            raise _Repeats

    def _follow(self, period: int | None) -> None:
        """Counts need not have settled for a plan to repeat, if it is promised to, on one tree (a
        peer on two tells the smaller count of both, now of the one, now of the other)."""
        self._recorder.follows = period is not None and len(self.table.spans) == 1

    def _period(self) -> int | None:
        """What all algorithms promise, if they promise the same and nothing disturbs them."""
        if not self._may_repeat:
            return None
        periods = {node.algorithm.period() for node in self._world.nodes.values()}
        return periods.pop() if len(periods) == 1 else None

    def _compiled(self, plan: Plan) -> Compiled:
        counts, now = self._meter.counts(), self._world.now
        depth = max(node.depth for node in self._world.nodes.values())
        compiled = Compiled(
            plan=plan,
            averaged=plan.averaged_by_step(),
            groups=self._groups(plan),
            stages=[self.table.compiled(stages) for stages in plan.stages],
            counts=tuple(a - b for a, b in zip(counts, self._counted, strict=True)),
            duration_s=now - self._closed_at,
            depth=depth - self.depth,
        )
        self._counted, self._closed_at, self.depth = counts, now, depth
        return compiled

    def _groups(self, plan: Plan) -> list[Group]:
        """Trainings that can be done in one call, in ascending order of peers."""
        together: dict[tuple[Any, ...], list[Training]] = {}
        for training in plan.trainings:
            rate = None if training.at is None else self._rate(training.at)
            key = (training.step, float(training.lr_scale), training.local_steps, rate)
            together.setdefault(key, []).append(training)
        return [self._group(plan, members) for members in together.values()]

    def _group(self, plan: Plan, members: Sequence[Training]) -> Group:
        one = members[0]
        peers = [training.peer for training in members]
        momenta = [training.momentum for training in members if training.momentum is not None]
        device = self.table.device
        return Group(
            peers=peers,
            chosen=None if len(peers) == len(self._views) else torch.tensor(peers, device=device),
            ahead=one.step - plan.base,
            lr_scale=float(one.lr_scale),
            local_steps=one.local_steps,
            at=one.at,
            momenta=torch.tensor(momenta, device=device) if momenta else None,
        )

    def _carry_out(self, compiled: Compiled, shift: int) -> None:
        """Train and combine, `shift` steps after those for which the plan was recorded."""
        for group in compiled.groups:
            self._train(group, compiled.plan.base + group.ahead + shift)
        for part, stages in enumerate(compiled.stages):
            self.table.apply(part, stages, is_first=shift == 0)
        self.after_plan(compiled.averaged, shift)

    def _train(self, group: Group, step: int) -> None:
        self.before_training(group.peers, step)
        models = self.table.models(group.chosen)
        momenta = None if group.momenta is None else self.table.rows(group.momenta)
        losses = self._steps.train(
            group.peers, step, group.lr_scale, models, momenta, group.local_steps, group.at
        )
        self.table.put_models(group.chosen, models)
        self.losses.update(zip(group.peers, losses, strict=True))

    def _expect(self, plan: Plan, times: int) -> None:
        for peer, effect in plan.averaged:
            self.expected[peer] += times * effect.expected
            self.missed[peer] += times * effect.missed
            self.timed_out[peer] += times * effect.timed_out
            self.waited_s[peer] += times * effect.waited_s

    def _replay(self) -> None:
        """The remaining steps, by the plans of the last cycle over and over."""
        length = len(self._cycle)
        first = self._cycle[-1].plan.base + 1
        for step in range(first, self._total_steps):
            k = (step - first) % length
            compiled = self._cycle[k]
            self._closed_at += compiled.duration_s
            self.depth += compiled.depth
            self._pending[k] += 1
            self.replayed += 1
            self._carry_out(compiled, step - compiled.plan.base)
        for k, compiled in enumerate(self._cycle):
            self._expect(compiled.plan, len(range(first + k, self._total_steps, length)))
