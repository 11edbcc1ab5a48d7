"""The vectors of a whole swarm as rows of one tensor, and plans carried out on them.

Row k * peers + i holds register k of peer i, the live models first; rows beyond hold messages. On
two trees the columns are cut in two parts with a tensor each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from peer.algorithms.core import Role
from peer.codec import Format, loses_nothing, roundtrip
from peer.registers import span
from peer.simulator.counts import Formula, Number, Numbers
from peer.simulator.plan import Stage


class Combinations(Protocol):
    """What a stage forms."""

    @property
    def numbers(self) -> Sequence[Numbers]:
        """Coefficients and divisors."""

    def take(self, numbers: Sequence[Tensor]) -> None:
        """From now on those are the numbers."""

    def formed(self, table: Tensor) -> Tensor:
        """The sums, shape (k, d)."""


class Bag:
    """Combinations formed by one call, in whatever order it takes the terms."""

    def __init__(self, stage: Stage, like: Tensor) -> None:
        device = like.device
        self._dtype = like.dtype
        self._offsets = torch.tensor(stage.offsets, device=device)
        self._rows = torch.tensor(stage.rows, dtype=torch.int64, device=device)
        self._lengths = torch.tensor(stage.lengths, device=device)
        self.numbers = (Numbers(stage.coefs, device), Numbers(stage.divisors, device))

    def take(self, numbers: Sequence[Tensor]) -> None:
        coefs, divisors = numbers
        self._coefs = (coefs / divisors.repeat_interleave(self._lengths)).to(self._dtype)

    def formed(self, table: Tensor) -> Tensor:
        return F.embedding_bag(
            self._rows, table, self._offsets, mode="sum", per_sample_weights=self._coefs
        )


class AsWritten:
    """Combinations formed term by term in the order written, the division last: bit for bit what
    `peer.registers.evaluate` makes of each. Those with most terms come first in the stage."""

    def __init__(self, stage: Stage, like: Tensor) -> None:
        self._dtype = like.dtype
        exact = torch.promote_types(like.dtype, torch.float32)  # that of scalars in torch's kernels
        lengths = stage.lengths
        self._exact = exact
        self._combinations = len(lengths)
        self.numbers = (Numbers(stage.coefs, like.device), Numbers(stage.divisors, like.device))
        self._terms: list[tuple[Tensor, Tensor]] = []  # of all that have a first, a second, ...
        for place in range(max(lengths)):
            where = [o + place for o, n in zip(stage.offsets, lengths, strict=True) if n > place]
            rows = torch.tensor([stage.rows[k] for k in where], device=like.device)
            self._terms.append((rows, torch.tensor(where, device=like.device)))

    def take(self, numbers: Sequence[Tensor]) -> None:
        coefs, divisors = (tensor.to(self._exact)[:, None] for tensor in numbers)
        self._now = [(rows, coefs[where]) for rows, where in self._terms]
        self._over = divisors

    def formed(self, table: Tensor) -> Tensor:
        total = table.new_zeros((self._combinations, table.shape[1]))
        for place, (rows, coefs) in enumerate(self._now):
            part = (table[rows] * coefs).to(self._dtype)
            if place == 0:
                total[: len(rows)] = part
            else:
                total[: len(rows)] += part
        return (total / self._over).to(self._dtype)


@dataclass(slots=True)
class Step:
    """A stage as tensors; `messages` are the places in `targets` of what goes over the wire,
    `counting` the rows of those with a count, and their counts."""

    targets: Tensor
    combinations: Combinations
    messages: Tensor | None
    highest: int  # largest row number in it
    counting: tuple[Tensor, Numbers] | None
    version: int = -1  # of the counts that the combinations know; -1: as recorded
    is_sound: bool = True  # as far as is known, numbers are what they are said to follow from

    @staticmethod
    def of(
        stage: Stage, like: Tensor, first_message: int, *, is_lossy: bool, is_exact: bool
    ) -> Step:
        """`like` tells dtype and device; rows from `first_message` on are messages."""
        stage = stage.longest_first() if is_exact else stage
        targets = torch.tensor(stage.targets, device=like.device)
        counts = [(t, n) for t, n in zip(stage.targets, stage.counts, strict=True) if n]
        return Step(
            targets=targets,
            combinations=AsWritten(stage, like) if is_exact else Bag(stage, like),
            messages=(targets >= first_message).nonzero().flatten() if is_lossy else None,
            highest=max([*stage.targets, *stage.rows]),
            counting=_counting(counts, like.device) if counts else None,
        )


def _counting(
    counts: Sequence[tuple[int, Formula]], device: torch.device
) -> tuple[Tensor, Numbers]:
    rows = torch.tensor([row for row, _ in counts], device=device)
    return rows, Numbers([formula for _, formula in counts], device)


class Table:
    """`start`, shape (d,), is every peer's model at first; all other registers are zero."""

    def __init__(
        self,
        start: Tensor,
        peers: int,
        registers: Sequence[Role],
        trees: int,
        wire_format: Format,
        parameters_end: int,
        *,
        is_exact: bool = False,
    ) -> None:
        """`registers` are the roles of all but the live one. `is_exact`: sums are formed in the
        order written, to the bits that one object per peer would get."""
        self._is_exact = is_exact
        self.device = start.device
        self._peers = peers
        self._format = wire_format
        self._is_lossy = not loses_nothing(start.dtype, wire_format)
        self.first_message = peers * (1 + len(registers))
        parts = max(trees, 1)
        self.spans = [span(start.numel(), tree, parts) for tree in range(parts)]
        self._parts = [start.new_zeros((self.first_message, b - a)) for a, b in self.spans]
        self._counts = [part.new_zeros(len(part), dtype=torch.float64) for part in self._parts]
        self._version = [0] * parts  # of the counts: they are the same as long as it is
        self._corrections = [
            slice((k + 1) * peers, (k + 2) * peers)
            for k, role in enumerate(registers)
            if role is Role.CORRECTION and parameters_end < start.numel()
        ]
        self._buffers = [max(parameters_end - a, 0) for a, _ in self.spans]
        self.put_models(None, start.repeat(peers, 1))

    def models(self, chosen: Tensor | None = None) -> Tensor:
        """Live models of all peers (None) or the chosen; write them back with `put_models`."""
        return self.rows(slice(self._peers) if chosen is None else chosen)

    def rows(self, which: Tensor | slice) -> Tensor:
        """Whole rows, shape (k, d)."""
        pieces = [part[which] for part in self._parts]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1)

    def put_models(self, chosen: Tensor | None, models: Tensor) -> None:
        """Write live models back."""
        which = slice(self._peers) if chosen is None else chosen
        for part, (a, b) in zip(self._parts, self.spans, strict=True):
            part[which] = models[:, a:b]

    def compiled(self, stages: Sequence[Stage]) -> list[Step]:
        """Stages of one part in the form that `apply` takes, to be used as often as wanted."""
        like, first = self._parts[0], self.first_message
        how = {"is_lossy": self._is_lossy, "is_exact": self._is_exact}
        return [Step.of(stage, like, first, **how) for stage in stages]

    def apply(self, part: int, steps: Sequence[Step], *, is_first: bool = True) -> None:
        """Carry out the stages of one part in order; after the first time, with numbers that follow
        from the counts that messages have by then."""
        for step in steps:
            table = self._reaching(part, step.highest)
            counting = self._counted(part, step, is_first=is_first)
            formed = step.combinations.formed(table)
            if step.messages is not None:
                formed[step.messages] = roundtrip(formed[step.messages], self._format)
            table[step.targets] = formed
            if counting:
                self._count(part, *counting)
            for rows in self._corrections:
                table[rows, self._buffers[part] :] = 0

    @property
    def version(self) -> int:
        """Of the counts in the first part: another whenever one of them changes."""
        return self._version[0]

    def counts(self, numbers: Sequence[Number]) -> list[int]:
        """What they come to now, in the first part."""
        return [int(n) for n in Numbers(numbers, self.device).now(self._counts[0]).tolist()]

    def _counted(self, part: int, step: Step, *, is_first: bool) -> tuple[Tensor, Tensor] | None:
        """Let a step's combinations know the counts; returns rows that get others by it, and
        those. The first time all is as recorded."""
        if step.version == self._version[part]:
            return None
        counts, rows = self._counts[part], None
        numbers = step.combinations.numbers
        if step.counting:
            rows, of_messages = step.counting
            numbers = (*numbers, of_messages)
        now = [n.now(counts) for n in numbers]
        if is_first:
            recorded = [n.recorded for n in numbers]
            step.is_sound = all(map(torch.equal, recorded, now))
            now = recorded
        else:
            step.version = self._version[part]
        step.combinations.take(now[:2])
        return None if rows is None else (rows, now[2])

    def _count(self, part: int, rows: Tensor, counts: Tensor) -> None:
        if not torch.equal(self._counts[part][rows], counts):
            self._counts[part][rows] = counts
            self._version[part] += 1

    def _reaching(self, part: int, row: int) -> Tensor:
        """The tensor of a part, with as many rows as are needed."""
        table = self._parts[part]
        if row >= len(table):
            room = table.new_zeros((max(row + 1 - len(table), len(table) // 2), table.shape[1]))
            table = self._parts[part] = torch.cat([table, room])
            more = self._counts[part].new_zeros(len(room))
            self._counts[part] = torch.cat([self._counts[part], more])
        return table
