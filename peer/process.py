"""What a process that moves much memory asks of its C library, where that is glibc and OpenMP.

Elsewhere all works as well, and takes more processor time.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
MAPPED_BYTES = 4 << 20
"""From this size on a peer's memory is mapped by itself, and given back when freed: models are."""
KEPT_BYTES = 16 << 20
"""So much freed memory at the end of an arena is kept, for the chunks that come next."""
ARENAS = 2
"""With one for each thread that serves calls, whoever calls a peer could have it keep many times as
much: `benchmarks/hostile.py`."""

HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"

_here = threading.local()


def keep_freed_memory(mapped_bytes: int = MAPPED_BYTES, kept_bytes: int = KEPT_BYTES) -> None:
    """Have the allocator keep what chunks take, for the next ones; for the life of the process.

    By default it gives memory of such sizes back to the system each time. To have it again, page
    by page and zeroed, took as long as sending it. glibc maps by itself what has more than 32 MiB,
    whatever `mapped_bytes` says: such tensors are in huge pages, where the system gives some, of
    which zeroing takes half the time, and all that reads and writes them some less.
    """
    os.environ.setdefault(HUGE_PAGES, "1")  # torch looks at its first allocation
    mallopt = _c_function("mallopt")
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, ARENAS)
        mallopt(_M_MMAP_THRESHOLD, mapped_bytes)
        mallopt(_M_TRIM_THRESHOLD, kept_bytes)


def compute_alone() -> None:
    """From now on torch computes what this thread asks for in this thread alone.

    A chunk is done before other threads have woken up; and those wait for more to do, spinning, on
    the cores that training needs. `torch.set_num_threads` is for all threads.
    """
    if not getattr(_here, "is_alone", False):
        _here.is_alone = True
        torch.get_num_threads()  # at its first use in a thread torch sets the number itself
        _set_threads(1)


@contextmanager
def computing_alone() -> Iterator[None]:
    """What `compute_alone` does, for as long as this lasts."""
    before = torch.get_num_threads()
    _set_threads(1)
    try:
        yield
    finally:
        _set_threads(before)


def _set_threads(number: int) -> None:
    """By OpenMP's rules this holds for the calling thread only."""
    set_num_threads = _c_function("omp_set_num_threads")
    if set_num_threads is not None:
        set_num_threads(number)


def _c_function(name: str) -> Callable[..., object] | None:
    """Of the libraries that are loaded for all; None if there is none of that name."""
    return getattr(ctypes.CDLL(None), name, None)
