"""What a swarm computes in one step, written down instead of done: the plan of a segment.

State machines hold no vectors, and nothing that they decide depends on a vector's value. So a
simulated swarm can run without any: its effects are recorded here as rows of one table, and
whoever holds the vectors (`stacked`) evaluates many of them at once.

A **segment** is a set of trainings that do not depend on each other, and the combinations that
follow until one of these peers trains again. Where all peers keep step a segment is a step of the
swarm. Its combinations are sorted into stages: all of a stage are formed from the rows as they
were before it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from peer.algorithms.core import Averaged, Coef, Train
from peer.simulator.counts import Formula, Number, number

MULTIPLES = 4  # rows of messages alternate, so plans repeat after a small multiple of the period


@dataclass(slots=True)
class Stage:
    """Combinations formed at the same time: row `targets[k]` becomes the sum of coefs * rows over
    the terms from `offsets[k]` up to `offsets[k + 1]` (the last one: to the end), divided by
    `divisors[k]`. If it is a message, `counts[k]` says how many models are in it."""

    targets: list[int] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    coefs: list[Number] = field(default_factory=list)
    divisors: list[Number] = field(default_factory=list)
    counts: list[Formula | None] = field(default_factory=list)

    @property
    def lengths(self) -> list[int]:
        """How many terms each combination has."""
        ends = [*self.offsets[1:], len(self.rows)]
        return [end - start for start, end in zip(self.offsets, ends, strict=True)]

    def in_order(self) -> Stage:
        """The same by ascending targets, whatever the order of events was."""
        return self.arranged(sorted(range(len(self.targets)), key=self.targets.__getitem__))

    def longest_first(self) -> Stage:
        """The same by falling number of terms."""
        lengths = self.lengths
        return self.arranged(sorted(range(len(lengths)), key=lambda k: -lengths[k]))

    def arranged(self, order: Sequence[int]) -> Stage:
        """The same combinations in that order."""
        arranged, lengths = Stage(), self.lengths
        for k in order:
            terms = slice(self.offsets[k], self.offsets[k] + lengths[k])
            combination = self.rows[terms], self.coefs[terms], self.divisors[k], self.counts[k]
            arranged.append(self.targets[k], *combination)
        return arranged

    def append(
        self,
        target: int,
        rows: Sequence[int],
        coefs: Sequence[Number],
        divisor: Number,
        count: Formula | None,
    ) -> None:
        """Add one combination."""
        self.targets.append(target)
        self.offsets.append(len(self.rows))
        self.rows += rows
        self.coefs += coefs
        self.divisors.append(divisor)
        self.counts.append(count)


@dataclass(frozen=True, slots=True)
class Training:
    """Local steps of one peer; `momentum` is the row of quasi-global momentum, if there is one,
    `local_steps` their numbers over the run where they vary."""

    peer: int
    step: int
    lr_scale: Coef
    momentum: int | None
    local_steps: range | None = None
    at: int | None = None  # in the schedule, if not at `step`


@dataclass(slots=True)
class Plan:
    """A segment: trainings, then `stages[part]` in order; parts are independent of each other.

    Steps are counted from `base`, so that plans of different steps can be equal.
    """

    base: int
    trainings: list[Training]
    stages: tuple[list[Stage], ...]
    averaged: list[tuple[int, Averaged]]

    def averaged_by_step(self) -> dict[int, list[tuple[int, Averaged]]]:
        """Who completed which step, and how."""
        by_step: dict[int, list[tuple[int, Averaged]]] = {}
        for peer, effect in self.averaged:
            by_step.setdefault(effect.step, []).append((peer, effect))
        return by_step

    def repeats(self, other: Plan) -> bool:
        """Whether this is the same work as `other`, some steps later or earlier."""
        return (
            self.stages == other.stages
            and self._trainings() == other._trainings()
            and self._averaged() == other._averaged()
        )

    def _trainings(self) -> list[Training]:
        return [replace(t, step=t.step - self.base) for t in self.trainings]

    def _averaged(self) -> list[tuple[object, ...]]:
        """Without `waited_s`, the difference of two growing clocks, which rounds."""
        return [
            (p, a.step - self.base, number(a.counted), a.swarm_size, a.expected, a.missed, a.late)
            for p, a in self.averaged
        ]


class Row:
    """Where a message's vector stands while anyone still refers to it."""

    __slots__ = ("_taken", "number")

    def __init__(self, number: int, taken: set[int]) -> None:
        self.number = number
        self._taken = taken
        taken.add(number)

    def __del__(self) -> None:
        self._taken.discard(self.number)


class Part:
    """The rows of one part of all vectors, and the stages of the segment being recorded.

    Rows below `first_free` belong to registers; messages take those above.
    """

    def __init__(self, first_free: int) -> None:
        self.rows = first_free
        self.stages: list[Stage] = []
        self._numbers: dict[tuple[object, int], int] = {}
        self._taken: set[int] = set()
        self._read: dict[int, int] = {}  # row -> last stage that reads what it holds now
        self._written: dict[int, int] = {}  # row -> stage that formed it

    def new_row(self, owner: object, step: int) -> Row:
        """A row for a message of `owner`; free again once nobody refers to it.

        An owner has few rows, and chooses among those that are free by the step's last bits. So
        equal steps use equal rows, again after one step, two or four.
        """
        for slot in (0, 1 + step % 2, 3 + step // 2 % 2):
            number = self._number(owner, slot)
            if number not in self._taken:
                return Row(number, self._taken)
        more = (self._number(owner, slot) for slot in itertools.count(5))
        return Row(next(number for number in more if number not in self._taken), self._taken)

    def _number(self, owner: object, slot: int) -> int:
        key = (owner, slot)
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = self.rows
            self.rows += 1
        return number

    def touched(self, row: int) -> bool:
        """Whether a combination of this segment reads or forms that row."""
        return row in self._read or row in self._written

    def form(
        self,
        target: int,
        terms: Sequence[tuple[Coef, int]],
        divisor: Coef,
        count: Formula | None = None,
    ) -> None:
        """Record a combination, in the first stage that comes after what it depends on."""
        read, written = self._read, self._written
        at = max(read.pop(target, 0), written.get(target, -1) + 1)
        rows = [row for _, row in terms]
        coefs = [number(coef) for coef, _ in terms]
        over = number(divisor)
        formulas = [n for n in (*coefs, over, count) if isinstance(n, Formula)]
        needed = [*rows, *(row for formula in formulas for row, _ in formula.terms)]
        for row in needed:
            if row in written and written[row] >= at:
                at = written[row] + 1
        for row in needed:
            if row not in read or read[row] < at:
                read[row] = at
        if target in needed:
            del read[target]  # what was read there is gone
        written[target] = at
        while len(self.stages) <= at:
            self.stages.append(Stage())
        self.stages[at].append(target, rows, coefs, over, count)

    def take(self) -> list[Stage]:
        """The stages so far; a new segment begins."""
        stages = [stage.in_order() for stage in self.stages]
        self.stages = []
        self._read, self._written = {}, {}
        return stages


class Recorder:
    """Collects what all peers do, and hands out a plan whenever a segment is complete.

    `registers` are the names of a peer's vectors, the live one first: row `k * peers + i` holds
    register k of peer i.
    """

    def __init__(
        self, peers: int, registers: Sequence[str], parts: int, on_plan: Callable[[Plan], None]
    ) -> None:
        self.parts = [Part(peers * len(registers)) for _ in range(parts)]
        self._start = {name: k * peers for k, name in enumerate(registers)}
        self._on_plan = on_plan
        self.follows = False  # whether counts of messages are recorded as what they follow from
        self._trainings: list[Training] = []
        self._trained: set[int] = set()
        self._averaged: list[tuple[int, Averaged]] = []

    def row(self, register: str, peer: int) -> int:
        return self._start[register] + peer

    def train(self, peer: int, effect: Train) -> None:
        """A peer trains; if anything of this segment depends on what it held, a new one begins."""
        momentum = effect.momentum.name if effect.momentum else None
        row = None if momentum is None else self.row(momentum, peer)
        needed = [peer] if row is None else [peer, row]  # the live register's row is the peer's
        is_bound = any(part.touched(r) for part in self.parts for r in needed)
        if peer in self._trained or is_bound:
            self.close()
        self._trained.add(peer)
        self._trainings.append(
            Training(peer, effect.step, effect.lr_scale, row, effect.local_steps, effect.at)
        )

    def averaged(self, peer: int, effect: Averaged) -> None:
        self._averaged.append((peer, effect))

    def close(self) -> None:
        """End the segment and hand out its plan, if there is anything in it."""
        stages = tuple(part.take() for part in self.parts)
        if not (self._trainings or self._averaged or any(stages)):
            return
        base = min((t.step for t in self._trainings), default=0)
        trainings = sorted(self._trainings, key=lambda training: training.peer)
        averaged = sorted(self._averaged, key=lambda pair: pair[0])
        plan = Plan(base, trainings, stages, averaged)
        self._trainings, self._trained, self._averaged = [], set(), []
        self._on_plan(plan)


class History:
    """The latest plans, to see whether they repeat."""

    def __init__(self, peers: int) -> None:
        self._peers = peers
        self.plans: list[Plan] = []

    def add(self, plan: Plan, period: int | None) -> list[Plan] | None:
        """Remember a plan. Returns the plans of the next steps, over and over, once they repeat.

        `period` is what the algorithms promise, in steps; None: nothing, and nothing is taken to
        repeat however alike two steps look. The promise is believed after two equal cycles, each
        of a period or a small multiple of it, in which all peers kept step.
        """
        follows = not self.plans or plan.base == self.plans[-1].base + 1
        if period is None or not follows or not self._is_common_step(plan):
            self.plans = []
            return None
        self.plans = [*self.plans, plan][-2 * MULTIPLES * period :]
        lengths = (k * period for k in range(1, MULTIPLES + 1))
        return next((cycle for cycle in map(self._cycle, lengths) if cycle), None)

    def _cycle(self, length: int) -> list[Plan] | None:
        if len(self.plans) < 2 * length:
            return None
        last, before = self.plans[-length:], self.plans[-2 * length : -length]
        alike = all(a.repeats(b) for a, b in zip(last, before, strict=True))
        return last if alike else None

    def _is_common_step(self, plan: Plan) -> bool:
        steps = {t.step for t in plan.trainings} | {a.step for _, a in plan.averaged}
        return len(plan.trainings) == len(plan.averaged) == self._peers and steps == {plan.base}
