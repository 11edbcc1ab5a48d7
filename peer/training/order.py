"""Which samples a peer trains on at each step: a pure function of (seed, shard, draw).

A draw is one optimizer step, numbered step * local_steps + local step over the whole run, so a
peer that jumps ahead or resumes has the order it would have had anyway. Samples are drawn without
replacement: each epoch is a new permutation of the shard, and a batch may begin in one epoch and
end in the next. A batch larger than the shard is the whole shard, every time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from peer.training.random_state import derive_seed


class DataOrder:
    """The order of a shard's `size` samples in batches of `batch_size`."""

    def __init__(self, seed: int, shard: int, size: int, batch_size: int) -> None:
        assert size >= 1
        assert batch_size >= 1
        self.size = size
        self.batch_size = min(batch_size, size)
        self._seed = seed
        self._shard = shard
        self._only = torch.zeros(1, dtype=torch.int64) if size == 1 else None
        self._cached: tuple[int, Tensor] | None = None  # only spares work: results do not differ

    def indices(self, draw: int) -> Tensor:
        """Sample indices of optimizer step `draw` (>= 0): int64, shape (batch_size,)."""
        if self._only is not None:
            return self._only
        first = draw * self.batch_size
        epoch, start = divmod(first, self.size)
        head = self._permutation(epoch)[start : start + self.batch_size]
        if len(head) == self.batch_size:
            return head
        return torch.cat([head, self._permutation(epoch + 1)[: self.batch_size - len(head)]])

    def _permutation(self, epoch: int) -> Tensor:
        if self._cached is None or self._cached[0] != epoch:
            generator = torch.Generator()
            generator.manual_seed(derive_seed("order", self._seed, self._shard, epoch))
            self._cached = (epoch, torch.randperm(self.size, generator=generator))
        return self._cached[1]
