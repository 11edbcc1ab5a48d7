"""Membership on a real clock: what is stored, told and watched, and in which order."""

import queue
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from coordinator.conductor import Conductor, Notice, Publication, WatchEnd
from coordinator.members import (
    FIRST_HEALED_NUMBER,
    Elected,
    GaveUp,
    Gone,
    HealedTree,
    Join,
    Leave,
    Reason,
    Renew,
    Waiting,
)
from coordinator.store import Memory, Store
from relayswarm.config import parse
from relayswarm.errors import ConfigError

PATIENCE_S = 20.0


class SpyingStore(Store):
    """Says when it has saved."""

    def __init__(self, said: "queue.SimpleQueue[object]", *, breaks: bool = False) -> None:
        super().__init__()
        self._said, self._breaks = said, breaks

    def save(self, memory: Memory) -> None:
        if self._breaks:
            raise ConfigError("store", "x", "disk full", "free some space")
        super().save(memory)
        self._said.put(memory)


def conductor_of(text: str, store: Store | None = None) -> Conductor:
    return Conductor(parse(text), store or Store())


def join(peer: str, incarnation: int = 1, fingerprint: int = 5) -> Join:
    return Join(incarnation, f"{peer}:1", peer, fingerprint=fingerprint)


@pytest.fixture
def said() -> "queue.SimpleQueue[Notice]":
    return queue.SimpleQueue()


@pytest.fixture
def conductor(said: "queue.SimpleQueue[Notice]") -> Iterator[Conductor]:
    made = conductor_of("peers = 2")
    made.listeners.append(said.put)
    made.start()
    yield made
    made.stop()


def test_an_epoch_is_stored_before_anyone_hears_of_it() -> None:
    said: queue.SimpleQueue[object] = queue.SimpleQueue()
    conductor = conductor_of("peers = 1", SpyingStore(said))
    conductor.listeners.append(said.put)
    conductor.start()
    conductor.handle(join("peer-0"))
    heard: list[object] = []
    while not heard or not isinstance(heard[-1], Publication):
        heard.append(said.get(timeout=PATIENCE_S))
    conductor.stop()
    memory = next(k for k in heard if isinstance(k, Memory))
    publication = heard[-1]
    assert isinstance(publication, Publication)
    assert (memory.term, memory.number, memory.fingerprint) == (publication.elected.term, 1, 5)
    assert heard.index(memory) < heard.index(publication)


def test_an_epoch_that_cannot_be_stored_is_not_published() -> None:
    said: queue.SimpleQueue[object] = queue.SimpleQueue()
    conductor = conductor_of("peers = 1", SpyingStore(said, breaks=True))
    conductor.listeners.append(said.put)
    conductor.start()
    conductor.handle(join("peer-0"))
    assert conductor.ended.wait(PATIENCE_S)
    conductor.stop()
    assert isinstance(conductor.failure, ConfigError)
    assert conductor.publication is None


def test_numbers_go_on_after_a_restart(tmp_path: Path) -> None:
    ages = []
    for life in (1, 2):
        said: queue.SimpleQueue[Notice] = queue.SimpleQueue()
        with closing(Store(tmp_path / "store")) as store:
            conductor = conductor_of("peers = 1", store)
            conductor.listeners.append(said.put)
            conductor.start()
            conductor.handle(join("peer-0", incarnation=life))
            elected = await_notice(said, Elected)
            await_notice(said, Publication)
            ages.append((elected.term, elected.number))
            conductor.stop()
    assert ages[1] == (ages[0][0], 2)


@pytest.mark.parametrize(("middle", "adopted"), [("peer-2", True), ("peer-9", False)])
def test_a_tree_of_the_peers_is_published_unless_it_is_none(middle: str, adopted: bool) -> None:
    """By default it would be the star around peer-0."""
    edges = (("peer-0", middle), ("peer-1", middle))
    lives = frozenset((f"peer-{k}", 1) for k in range(3))
    tree = HealedTree((2**32, FIRST_HEALED_NUMBER), "peer-0", lives, edges, edges)
    conductor = conductor_of("peers = 3\n[topology]\ngraph = 'complete'\nself_heal = true")
    published: queue.SimpleQueue[Publication] = queue.SimpleQueue()
    conductor.listeners.append(lambda n: isinstance(n, Publication) and published.put(n))
    conductor.start()
    for k in range(3):
        conductor.handle(join(f"peer-{k}"))
    published.get(timeout=PATIENCE_S)
    conductor.handle(Renew("peer-0", 1, tree=tree))
    notice = published.get(timeout=PATIENCE_S)
    conductor.stop()
    star = (("peer-0", "peer-1"), ("peer-0", "peer-2"))
    assert notice.layout.tree_edges == ((edges[0], edges[1]) if adopted else star,)
    assert (notice.elected.term, notice.elected.number) == (2**32 + 1, 1)


def test_patience_ends(said: "queue.SimpleQueue[Notice]") -> None:
    conductor = conductor_of("peers = 2\n[coordinator]\nstart_timeout_s = 0.2")
    conductor.listeners.append(said.put)
    conductor.handle(join("peer-0"))  # first: this thread may be slow
    conductor.start()
    assert conductor.ended.wait(PATIENCE_S)
    conductor.stop()
    assert conductor.gave_up == GaveUp(("peer-0",), 2)


def test_leases_end_by_themselves(said: "queue.SimpleQueue[Notice]") -> None:
    conductor = conductor_of("peers = 1\n[coordinator]\nlease_s = 0.3")
    conductor.listeners.append(said.put)
    conductor.start()
    conductor.handle(join("peer-0"))
    assert await_notice(said, Gone).reason is Reason.LEASE_EXPIRED
    conductor.stop()


def test_a_clock_that_jumps_takes_no_lease_away(said: "queue.SimpleQueue[Notice]") -> None:
    began, woke = time.monotonic(), threading.Event()  # the machine is suspended in between

    def clock() -> float:
        """It stands still before: a test that is slow takes no lease away either."""
        return time.monotonic() + 3600.0 if woke.is_set() else began

    conductor = Conductor(parse("peers = 1\n[coordinator]\nlease_s = 0.3"), Store(), clock=clock)
    conductor.listeners.append(said.put)
    conductor.start()
    conductor.handle(join("peer-0"))
    before = await_notice(said, Publication).elected.members[0].expires
    woke.set()
    after = await_notice(said, Gone).member.expires  # for it did not renew in the end
    conductor.stop()
    assert after - before > 3599


# --- watching ------------------------------------------------------------------------------------


def test_a_slow_reader_skips_what_is_out_of_date(conductor: Conductor) -> None:
    conductor.handle(join("peer-0"))
    watch = conductor.watch("peer-0", 1, lambda: True)
    assert next(watch) == Waiting(("peer-0",), 2)
    conductor.handle(join("peer-1"))
    first = next(k for k in watch if isinstance(k, Publication))
    for life in (2, 3, 4):
        conductor.handle(join("peer-1", incarnation=life))
    latest = next(k for k in watch if k.elected.members[1].incarnation == 4)
    assert latest.elected.number > first.elected.number
    conductor.handle(Leave("peer-0", 1, finished=True))
    assert next(watch) is WatchEnd.NOT_A_MEMBER
    assert list(watch) == []


def test_a_watch_ends_when_nobody_listens(conductor: Conductor) -> None:
    conductor.handle(join("peer-0"))
    listening = threading.Event()
    listening.set()
    waited: queue.SimpleQueue[object] = queue.SimpleQueue()
    watch = conductor.watch("peer-0", 1, listening.is_set)
    assert next(watch) == Waiting(("peer-0",), 2)
    thread = threading.Thread(target=lambda: waited.put(next(watch)))
    thread.start()
    listening.clear()
    conductor.nudge()
    assert waited.get(timeout=PATIENCE_S) is WatchEnd.HUNG_UP
    thread.join()


def test_a_watch_that_was_given_up_does_not_end_the_one_after_it(conductor: Conductor) -> None:
    """A thread may be late to begin it."""
    conductor.handle(join("peer-0"))
    watch = conductor.watch("peer-0", 1, lambda: True)
    assert next(watch) == Waiting(("peer-0",), 2)
    assert next(conductor.watch("peer-0", 1, lambda: False)) is WatchEnd.HUNG_UP
    conductor.handle(join("peer-1"))
    assert next(k for k in watch if isinstance(k, Publication))


def test_a_stranger_has_nothing_to_watch(conductor: Conductor) -> None:
    assert next(conductor.watch("peer-7", 1, lambda: True)) is WatchEnd.NOT_A_MEMBER


def test_a_stop_ends_watches() -> None:
    conductor = conductor_of("peers = 2")
    conductor.start()
    conductor.handle(join("peer-0"))
    watch = conductor.watch("peer-0", 1, lambda: True)
    next(watch)
    conductor.stop()
    assert next(watch) is WatchEnd.STOPPING


def await_notice(said: "queue.SimpleQueue[Notice]", kind: type) -> object:
    while True:
        notice = said.get(timeout=PATIENCE_S)
        if isinstance(notice, kind):
            return notice
