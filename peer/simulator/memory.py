"""Memory as a simulated swarm needs it: many objects that stay, large tensors again and again."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

from peer.process import keep_freed_memory

GARBAGE = 100_000  # objects between two looks of Python's collector
LARGEST_REUSED = 32 << 20  # bytes
KEPT = 1 << 30  # bytes of freed memory


@contextmanager
def memory_of_a_swarm() -> Iterator[None]:
    """Spend less time on memory while a swarm is simulated.

    Python's cycle collector looks at all objects whenever there are a quarter more: while a large
    swarm starts, most of the time. Here it passes over what there was, and looks less often.

    The tensors of stacked convolutions are freed and taken again in every step; memory is kept for
    them. That holds for the life of the process.
    """
    keep_freed_memory(LARGEST_REUSED, KEPT)
    thresholds = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(GARBAGE, *thresholds[1:])
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()
