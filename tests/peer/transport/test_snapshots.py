"""The shelf of snapshots: bounded, and forgetting only what nobody reads."""

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack

import pytest
import torch

from peer.transport.contract import Snapshot
from peer.transport.snapshots import (
    KEPT,
    READERS,
    BusyError,
    ForgottenError,
    KeptSnapshot,
    SnapshotShelf,
)


class Model:
    """Moves on each time it is looked at."""

    step = 0

    def take(self) -> Snapshot:
        self.step += 1
        return Snapshot(torch.full((3,), float(self.step)), self.step, (("w", (3,)),))


def test_a_new_reader_gets_a_new_snapshot_and_one_who_comes_back_the_same() -> None:
    shelf = SnapshotShelf(Model().take, fresh_s=0.0)
    with shelf.reading(0) as first, shelf.reading(0) as second:
        assert (first.snapshot.step, second.snapshot.step) == (1, 2)
        assert first.id != second.id
    with shelf.reading(first.id) as again:
        assert again is first


def test_readers_share_a_snapshot_of_just_now() -> None:
    model = Model()
    shelf = SnapshotShelf(model.take, fresh_s=60.0)
    with shelf.reading(0) as first, shelf.reading(0) as second:
        assert first is second
    for _ in range(100):
        with shelf.reading(0) as kept:
            assert kept is first
    assert model.step == 1


def test_the_oldest_unread_is_forgotten() -> None:
    shelf = SnapshotShelf(Model().take, fresh_s=0.0)
    ids = []
    for _ in range(KEPT + 1):
        with shelf.reading(0) as kept:
            ids.append(kept.id)
    with pytest.raises(ForgottenError), shelf.reading(ids[0]):
        pass
    for id in ids[1:]:
        with shelf.reading(id) as kept:
            assert kept.id == id


def test_what_is_read_is_kept_and_the_next_has_to_wait() -> None:
    shelf = SnapshotShelf(Model().take, fresh_s=0.0)
    with ExitStack() as stack:
        held = [stack.enter_context(shelf.reading(0)) for _ in range(KEPT)]
        with pytest.raises(BusyError), shelf.reading(0):
            pass
        with shelf.reading(held[0].id) as kept:
            assert kept is held[0]
    with shelf.reading(0) as kept:
        assert kept.snapshot.step == KEPT + 1


def test_readers_are_bounded() -> None:
    shelf = SnapshotShelf(Model().take, fresh_s=0.0)
    with ExitStack() as stack:
        first = stack.enter_context(shelf.reading(0))
        for _ in range(READERS - 1):
            stack.enter_context(shelf.reading(first.id))
        with pytest.raises(BusyError), shelf.reading(first.id):
            pass


def test_a_reader_that_fails_leaves() -> None:
    shelf = SnapshotShelf(Model().take, fresh_s=0.0)
    for _ in range(2 * READERS):
        with pytest.raises(RuntimeError, match="cut off"), shelf.reading(0):
            raise RuntimeError("cut off")


def test_who_waits_for_a_snapshot_counts_as_a_reader_and_holds_nobody_else_up() -> None:
    """Taking one may wait for the end of a step; callers beyond the bound are told at once."""
    step_ends, taken = threading.Event(), Model()

    def take() -> Snapshot:
        assert step_ends.wait(20.0)
        return taken.take()

    shelf = SnapshotShelf(take)

    def read(_: int) -> str:
        try:
            with shelf.reading(0):
                return "read"
        except BusyError:
            return "busy"

    with ThreadPoolExecutor(2 * READERS) as threads:
        reads = [threads.submit(read, number) for number in range(2 * READERS)]
        turned_away = list(itertools.islice(as_completed(reads, 20.0), READERS))
        assert [done.result() for done in turned_away] == ["busy"] * READERS
        step_ends.set()
        assert {r.result(20.0) for r in set(reads) - set(turned_away)} == {"read"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_models_are_served_in_float32(dtype: torch.dtype) -> None:
    vector = torch.tensor([1.5, -2.0], dtype=dtype)
    kept = KeptSnapshot(1, Snapshot(vector, 1, (("w", (2,)),)), 0.0)
    assert bytes(kept.payload) == b"\x00\x00\xc0\x3f\x00\x00\x00\xc0"
