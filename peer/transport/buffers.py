"""Receive buffers: bounded in number for each edge, and used again once their vectors are gone.

A message's vectors live in one buffer, which comes back to the pool when the last tensor that
shares its memory is garbage. No one has to give anything back, so nothing can be forgotten, and
nothing that is still being read is written over.
"""

from __future__ import annotations

import threading
import weakref
from collections import defaultdict, deque
from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor

LARGE_BYTES = 1 << 20
LARGE_PER_EDGE = 2
"""Last step's message, still being relayed, and this step's. More would cost a model each."""
SMALL_PER_EDGE = 4
"""Below 1 MiB memory costs less than an answer BUSY does: also hold what a neighbour who is a
step ahead sends, while last step's message and this step's are in use."""


class BufferPool:
    """Memory for messages, by edge; an edge is any hashable key."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._taken: defaultdict[Hashable, int] = defaultdict(int)
        self._idle: defaultdict[int, list[Tensor]] = defaultdict(list)
        # Finalizers run in any thread at any moment, perhaps in one that holds the guard, so
        # they only append here, which is atomic.
        self._returned: deque[tuple[Hashable, Tensor]] = deque()

    def lease(self, edge: Hashable, elements: int, dtype: torch.dtype) -> Tensor | None:
        """A vector of shape (elements,), contents undefined; None if the edge has its share."""
        size = elements * dtype.itemsize
        limit = LARGE_PER_EDGE if size >= LARGE_BYTES else SMALL_PER_EDGE
        with self._guard:
            self._collect()
            if self._taken[edge] >= limit:
                return None
            self._taken[edge] += 1
            idle = self._idle[size]
            memory = idle.pop() if idle else torch.empty(size, dtype=torch.uint8)
        return self._lend(edge, memory).view(dtype)

    def taken(self, edge: Hashable) -> int:
        """How many buffers of an edge are in use."""
        with self._guard:
            self._collect()
            return self._taken.get(edge, 0)

    def _lend(self, edge: Hashable, memory: Tensor) -> Tensor:
        if memory.numel() == 0:
            self._returned.append((edge, memory))
            return memory
        buffer: Any = memory.numpy()
        loan = memoryview(buffer)
        # torch keeps the loan alive as long as any tensor shares its memory
        weakref.finalize(loan, self._returned.append, (edge, memory)).atexit = False
        return torch.frombuffer(loan, dtype=torch.uint8)

    def _collect(self) -> None:
        while self._returned:
            edge, memory = self._returned.popleft()
            self._taken[edge] -= 1
            if not self._taken[edge]:
                del self._taken[edge]
            self._idle[memory.numel()].append(memory)
