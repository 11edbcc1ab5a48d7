"""Memory as a simulated swarm needs it: many objects that stay, large tensors again and again."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterator
from contextlib import contextmanager

GARBAGE = 100_000  # objects between two looks of Python's collector

# Of glibc's <malloc.h>
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGEST_REUSED = 32 << 20  # bytes; the most that glibc accepts
_KEPT = 1 << 30  # bytes


@contextmanager
def memory_of_a_swarm() -> Iterator[None]:
    """Spend less time on memory while a swarm is simulated.

    Python's cycle collector looks at all objects whenever there are a quarter more: while a large
    swarm starts, most of the time. Here it passes over what there was, and looks less often.

    glibc hands large blocks back to the system as soon as they are free, and the pages of the next
    one have to be cleared and mapped again: for the tensors of stacked convolutions about a quarter
    of a step. Here it keeps them; that setting stays for the life of the process.
    """
    _reuse_large_blocks()
    thresholds = gc.get_threshold()
    gc.freeze()
    gc.set_threshold(GARBAGE, *thresholds[1:])
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        gc.unfreeze()


def _reuse_large_blocks() -> None:
    """Does nothing where the C library is not glibc."""
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(_M_MMAP_THRESHOLD, _LARGEST_REUSED)
        set_option(_M_TRIM_THRESHOLD, _KEPT)
