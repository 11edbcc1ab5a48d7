"""The pool: bounded for each edge, memory used again, never while anyone reads it."""

import gc
import threading

import torch

from peer.transport.buffers import LARGE_BYTES, LARGE_PER_EDGE, SMALL_PER_EDGE, BufferPool

LARGE = LARGE_BYTES // 4  # elements of float32


def test_an_edge_gets_its_share_and_no_more() -> None:
    pool = BufferPool()
    held = [pool.lease("edge", LARGE, torch.float32) for _ in range(LARGE_PER_EDGE)]
    assert all(buffer is not None for buffer in held)
    assert pool.lease("edge", LARGE, torch.float32) is None
    assert pool.lease("other edge", LARGE, torch.float32) is not None
    small = [pool.lease("small", 10, torch.float32) for _ in range(SMALL_PER_EDGE + 1)]
    assert [buffer is None for buffer in small] == [False] * SMALL_PER_EDGE + [True]


def test_memory_comes_back_when_the_last_view_is_gone() -> None:
    pool = BufferPool()
    buffer = pool.lease("edge", LARGE, torch.float32)
    assert buffer is not None
    address = buffer.data_ptr()
    view = buffer.view(2, -1).unbind(0)[1][5:]
    del buffer
    assert pool.taken("edge") == 1
    assert view.data_ptr() > address
    del view
    assert pool.taken("edge") == 0
    again = pool.lease("other edge", LARGE, torch.float32)
    assert again is not None
    assert again.data_ptr() == address


def test_what_is_read_is_not_written_over() -> None:
    pool = BufferPool()
    first = pool.lease("edge", 8, torch.float32)
    assert first is not None
    tail = first.fill_(1.0)[4:]
    del first
    second = pool.lease("edge", 8, torch.float32)
    assert second is not None
    second.fill_(2.0)
    assert tail.tolist() == [1.0] * 4


def test_shape_and_dtype() -> None:
    pool = BufferPool()
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        buffer = pool.lease("edge", 7, dtype)
        assert buffer is not None
        assert (buffer.shape, buffer.dtype) == ((7,), dtype)
        del buffer
    empty = pool.lease("edge", 0, torch.float32)  # half of a model with one parameter
    assert empty is not None
    assert empty.shape == (0,)
    assert pool.taken("edge") == 0


def test_buffers_may_be_dropped_by_the_garbage_collector_at_any_moment() -> None:
    """A finalizer that took the pool's lock would hang here, in the thread that holds it."""
    pool = BufferPool()
    gc.collect()
    old = gc.get_threshold()
    gc.set_threshold(1)
    try:
        for _ in range(200):
            cycle: list[object] = [pool.lease("edge", 8, torch.float32)]
            cycle.append(cycle)
            del cycle
    finally:
        gc.set_threshold(*old)
    gc.collect()
    assert pool.taken("edge") == 0


def test_threads_share_the_pool() -> None:
    pool = BufferPool()
    highest = []

    def work() -> None:
        for _ in range(300):
            buffer = pool.lease("edge", LARGE, torch.uint8)
            if buffer is not None:
                highest.append(pool.taken("edge"))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert highest
    assert max(highest) <= SMALL_PER_EDGE
    assert pool.taken("edge") == 0
