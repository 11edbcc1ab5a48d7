"""Membership on a real clock: one lock, one ticking thread, and whoever listens.

What belongs here: what the pure state machine leaves out. Requests come from the service's threads,
deadlines from a thread of its own that waits for the next one; an epoch is laid out and stored
before anyone hears of it. How news travels (gRPC, log, metrics) is for others.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

from coordinator.graph_files import LabelledGraph
from coordinator.members import (
    Decision,
    Elected,
    Event,
    GaveUp,
    Rules,
    RunFinished,
    RunState,
    Tick,
    Waiting,
)
from coordinator.membership import Membership
from coordinator.store import Memory, Store
from coordinator.views import Layout, lay_out
from relayswarm.config import RunConfig
from relayswarm.net.gate import Denial


@dataclass(frozen=True, eq=False, slots=True)
class Publication:
    """An epoch as published."""

    elected: Elected
    layout: Layout
    digest: int

    def has(self, peer_id: str, incarnation: int) -> bool:
        """Whether this life of the peer is a member of the epoch."""
        me = (peer_id, incarnation)
        return any((m.peer_id, m.incarnation) == me for m in self.elected.members)


@dataclass(frozen=True, slots=True)
class Denied:
    """A call was turned away at the door, before membership heard of it."""

    denial: Denial
    text: str


Notice: TypeAlias = Decision | Publication | Denied
Listener: TypeAlias = Callable[[Notice], None]


class WatchEnd(Enum):
    """Why there is no more news for a peer."""

    NOT_A_MEMBER = "not a member"
    SUPERSEDED = "superseded"  # it watches through another stream by now
    STOPPING = "stopping"
    HUNG_UP = "hung up"  # the peer does not listen any more


News: TypeAlias = Publication | Waiting | WatchEnd


class Conductor:
    """The coordinator but for its sockets. Any thread may call it."""

    def __init__(
        self,
        config: RunConfig,
        store: Store,
        file_graph: LabelledGraph | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take up or begin the run in `store`. Raises ConfigError if it holds something else."""
        self.config = config
        self._store, self._file_graph, self._clock = store, file_graph, clock
        memory = store.open_run(config, first_term=int(time.time()))
        rules = Rules(
            run_id=config.run_id,
            needed=config.peers,
            shards=config.shards,
            lease_s=config.coordinator.lease_s,
            start_timeout_s=config.coordinator.start_timeout_s,
            max_members=max(512, 2 * config.peers),
            steps=max(config.steps, len(config.algorithm.options.get("script", ()))),
            wire_format=config.transport.wire_format,
        )
        self.membership = Membership(
            rules,
            clock(),
            term=memory.term,
            number=memory.number,
            fingerprint=memory.fingerprint,
        )
        self.publication: Publication | None = None
        self.listeners: list[Listener] = []
        self.lock = threading.RLock()
        self.ended = threading.Event()  # something of these has come: failure, gave_up, finished
        self.failure: BaseException | None = None
        self.gave_up: GaveUp | None = None
        self._wake = threading.Condition(self.lock)  # the ticking thread: deadlines have changed
        self._news = threading.Condition(self.lock)  # watching threads: there may be something new
        self._watches: dict[str, object] = {}
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="membership", daemon=True)

    @property
    def rules(self) -> Rules:
        """The rules of membership."""
        return self.membership.rules

    def now(self) -> float:
        """The time on membership's clock."""
        return self._clock()

    def start(self) -> None:
        """Begin to tick."""
        self._thread.start()

    def stop(self) -> None:
        """End all watches and the ticking thread. The store stays open."""
        with self.lock:
            self._stopping = True
            self._wake.notify_all()
            self._news.notify_all()
        if self._thread.ident is not None:
            self._thread.join()

    def handle(self, event: Event) -> list[Decision]:
        """Take a request in; the answer is the first decision."""
        with self.lock:
            decisions = self.membership.handle(event, self._clock())
            self._act(decisions)
            if not self.membership.settled:
                self._wake.notify_all()
            return decisions

    def tell(self, notice: Notice) -> None:
        """Let all listeners know."""
        with self.lock:
            self._tell(notice)

    # --- news ------------------------------------------------------------------------------------

    def watch(self, peer_id: str, incarnation: int, active: Callable[[], bool]) -> Iterator[News]:
        """What a member should know from now on: each epoch that it is in, or who is awaited.

        Only the latest counts: a slow reader skips what is out of date. Ends with a `WatchEnd`.
        `active` says whether the peer still listens; call `nudge` when that changes.
        """
        token = object()
        with self.lock:
            member = self.membership.members.get(peer_id)
            if member and member.incarnation == incarnation:  # nobody else ends a member's watch
                self._watches[peer_id] = token
                self._news.notify_all()
        news: News | None = None
        try:
            while not isinstance(news, WatchEnd):
                news = self._await_news(
                    news, lambda: self._news_for(peer_id, incarnation, token, active)
                )
                yield news
        finally:
            with self.lock:
                if self._watches.get(peer_id) is token:
                    del self._watches[peer_id]

    def _await_news(self, seen: News | None, look: Callable[[], News | None]) -> News:
        with self.lock:
            while (news := look()) is None or news == seen:
                self._news.wait()
            return news

    def nudge(self) -> None:
        """Let watching threads look whether their peer still listens."""
        with self.lock:
            self._news.notify_all()

    def _news_for(
        self, peer_id: str, incarnation: int, token: object, active: Callable[[], bool]
    ) -> News | None:
        if self._stopping:
            return WatchEnd.STOPPING
        if not active():
            return WatchEnd.HUNG_UP
        member = self.membership.members.get(peer_id)
        if member is None or member.incarnation != incarnation:
            return WatchEnd.NOT_A_MEMBER
        if self._watches.get(peer_id) is not token:
            return WatchEnd.SUPERSEDED
        if self.membership.state is RunState.WAITING:
            return Waiting(self.membership.present, self.rules.needed)
        if self.publication and self.publication.has(peer_id, incarnation):
            return self.publication
        return None

    # --- time ------------------------------------------------------------------------------------

    def _run(self) -> None:
        """The ticking thread: its top boundary. What goes wrong here ends the coordinator."""
        try:
            self._tick_until_stopped()
        except Exception as error:  # noqa: BLE001
            self.failure = error
            self.ended.set()

    def _tick_until_stopped(self) -> None:
        overslept_s = 0.0
        with self.lock:
            while not self._stopping:
                deadline, now = self.membership.next_deadline(), self._clock()
                if deadline is not None and deadline <= now:
                    self._act(self.membership.handle(Tick(overslept_s), now))
                    overslept_s = 0.0
                    continue
                # A machine that was suspended wakes up late: its members' leases must not pay.
                self._wake.wait(None if deadline is None else deadline - now)
                overslept_s = 0.0 if deadline is None else max(0.0, self._clock() - deadline)

    def _act(self, decisions: list[Decision]) -> None:
        for decision in decisions:
            self._tell(decision)
            if isinstance(decision, Elected):
                self._publish(decision)
            elif isinstance(decision, GaveUp):
                self.gave_up = decision
                self.ended.set()
            elif isinstance(decision, RunFinished):
                self.ended.set()
        self._news.notify_all()

    def _publish(self, elected: Elected) -> None:
        layout = lay_out(self.config, [m.peer_id for m in elected.members], self._file_graph)
        digest = layout.digest({m.peer_id: m.incarnation for m in elected.members})
        self._store.save(Memory(elected.term, elected.number, self.membership.fingerprint))
        self.membership.published(layout.neighbourhoods())
        self.publication = Publication(elected, layout, digest)
        self._tell(self.publication)

    def _tell(self, notice: Notice) -> None:
        for listener in self.listeners:
            listener(notice)
