"""The vectors of a whole swarm as rows of one tensor, and plans carried out on them.

Row k * peers + i holds register k of peer i, the live models first; rows beyond hold messages. On
two trees the columns are cut in two parts with a tensor each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from peer.algorithms.core import Role
from peer.codec import Format, roundtrip
from peer.registers import span
from peer.simulator.plan import Stage


class Bag:
    """Combinations formed by one call, in whatever order it takes the terms."""

    def __init__(self, stage: Stage, like: Tensor) -> None:
        device = like.device
        self._offsets = torch.tensor(stage.offsets, device=device)
        self._rows = torch.tensor(stage.rows, dtype=torch.int64, device=device)
        lengths = torch.tensor(stage.lengths)
        divisors = torch.tensor(stage.divisors, dtype=torch.float64).repeat_interleave(lengths)
        coefs = torch.tensor(stage.coefs, dtype=torch.float64) / divisors
        self._coefs = coefs.to(device=device, dtype=like.dtype)

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
        self._combinations = len(lengths)
        self._terms: list[tuple[Tensor, Tensor]] = []  # of all that have a first, a second, ...
        for place in range(max(lengths)):
            where = [o + place for o, n in zip(stage.offsets, lengths, strict=True) if n > place]
            rows = torch.tensor([stage.rows[k] for k in where], device=like.device)
            coefs = torch.tensor([stage.coefs[k] for k in where], dtype=exact, device=like.device)
            self._terms.append((rows, coefs[:, None]))
        self._divisors = torch.tensor(stage.divisors, dtype=exact, device=like.device)[:, None]

    def formed(self, table: Tensor) -> Tensor:
        total = table.new_zeros((self._combinations, table.shape[1]))
        for place, (rows, coefs) in enumerate(self._terms):
            part = (table[rows] * coefs).to(self._dtype)
            if place == 0:
                total[: len(rows)] = part
            else:
                total[: len(rows)] += part
        return (total / self._divisors).to(self._dtype)


@dataclass(frozen=True, slots=True)
class Step:
    """A stage as tensors; `messages` are the places in `targets` of what goes over the wire."""

    targets: Tensor
    combinations: Bag | AsWritten
    messages: Tensor | None
    highest: int  # largest row number in it

    @staticmethod
    def of(
        stage: Stage, like: Tensor, first_message: int, *, is_lossy: bool, is_exact: bool
    ) -> Step:
        """`like` tells dtype and device; rows from `first_message` on are messages."""
        stage = stage.longest_first() if is_exact else stage
        targets = torch.tensor(stage.targets, device=like.device)
        return Step(
            targets=targets,
            combinations=AsWritten(stage, like) if is_exact else Bag(stage, like),
            messages=(targets >= first_message).nonzero().flatten() if is_lossy else None,
            highest=max([*stage.targets, *stage.rows]),
        )


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
        self._is_lossy = torch.promote_types(start.dtype, wire_format.dtype) != wire_format.dtype
        self.first_message = peers * (1 + len(registers))
        parts = max(trees, 1)
        self.spans = [span(start.numel(), tree, parts) for tree in range(parts)]
        self._parts = [start.new_zeros((self.first_message, b - a)) for a, b in self.spans]
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

    def apply(self, part: int, steps: Sequence[Step]) -> None:
        """Carry out the stages of one part in order."""
        for step in steps:
            table = self._reaching(part, step.highest)
            formed = step.combinations.formed(table)
            if step.messages is not None:
                formed[step.messages] = roundtrip(formed[step.messages], self._format)
            table[step.targets] = formed
            for rows in self._corrections:
                table[rows, self._buffers[part] :] = 0

    def _reaching(self, part: int, row: int) -> Tensor:
        """The tensor of a part, with as many rows as are needed."""
        table = self._parts[part]
        if row >= len(table):
            room = table.new_zeros((max(row + 1 - len(table), len(table) // 2), table.shape[1]))
            table = self._parts[part] = torch.cat([table, room])
        return table
