"""Membership on a real clock: one lock, one ticking thread, and whoever listens.

What belongs here: what the pure state machine leaves out. Requests come from the service's threads,
deadlines from a thread of its own that waits for the next one; an epoch is laid out and stored
before anyone hears of it. How news travels (gRPC, log, metrics) is for others.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import Enum
from typing import TypeAlias

from coordinator.graph_files import LabelledGraph
from coordinator.graphs import GraphError
from coordinator.member_metrics import Fault
from coordinator.members import (
    Decision,
    Elected,
    Event,
    GaveUp,
    HealedTree,
    Join,
    NoTree,
    Renew,
    Rules,
    RunFinished,
    RunState,
    Tick,
    Waiting,
)
from coordinator.membership import Membership
from coordinator.progress import effective_step
from coordinator.rules import rules_of
from coordinator.stopping import Stopping, StopRule
from coordinator.store import Memory, RunStore
from coordinator.views import Layout, lay_out, lay_out_tree
from relayswarm.config import RunConfig
from relayswarm.net.gate import Denial


@dataclass(frozen=True, eq=False, slots=True)
class Publication:
    """An epoch as published."""

    elected: Elected
    layout: Layout
    digest: int
    stop_step: int = 0  # the run ends before this step; 0: after its last

    def has(self, peer_id: str, incarnation: int) -> bool:
        """Whether this life of the peer is a member of the epoch."""
        me = (peer_id, incarnation)
        return any((m.peer_id, m.incarnation) == me for m in self.elected.members)


@dataclass(frozen=True, slots=True)
class Denied:
    """A call was turned away at the door, before membership heard of it."""

    denial: Denial
    text: str


@dataclass(frozen=True, slots=True)
class SamplesRefused:
    """Of the metrics that a member told, so many were not taken, by fault."""

    peer_id: str
    faults: Mapping[Fault, int]


@dataclass(frozen=True, slots=True)
class StopPublished:
    """The run ends before this step, for that reason."""

    step: int
    reason: str


Notice: TypeAlias = Decision | Publication | Denied | SamplesRefused | StopPublished
Listener: TypeAlias = Callable[[Notice], None]


class WatchEnd(Enum):
    """Why there is no more news for a peer."""

    NOT_A_MEMBER = "not a member"
    SUPERSEDED = "superseded"  # it watches through another stream by now
    STOPPING = "stopping"
    HUNG_UP = "hung up"  # the peer does not listen any more


News: TypeAlias = Publication | Waiting | NoTree | WatchEnd


class Conductor:
    """The coordinator but for its sockets. Any thread may call it."""

    def __init__(
        self,
        config: RunConfig,
        store: RunStore,
        file_graph: LabelledGraph | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take up or begin the run in `store`. Raises ConfigError if it holds something else."""
        self.config = config
        self._store, self._file_graph, self._clock = store, file_graph, clock
        memory = store.open_run(config, first_term=int(time.time()))
        self.membership = Membership(
            rules_of(config),
            clock(),
            term=memory.term,
            number=memory.number,
            fingerprint=memory.fingerprint,
            layout_of=lambda weights: self._lay_out(weights).place_digest,
        )
        stop = config.stop
        hours = stop.max_hours
        rule = StopRule(None if hours is None else 3600 * hours, stop.metric, stop.patience)
        self._stopping_rule = Stopping(rule, memory.began_at or None)
        self._stop_step = memory.stop_step
        self.publication: Publication | None = None
        self.listeners: list[Listener] = []
        self.lock = threading.RLock()
        self.ended = (
            threading.Event()
        )  # something of these has come: failure, gave_up, no_tree, finished
        self.failure: BaseException | None = None
        self.gave_up: GaveUp | None = None
        self.no_tree: NoTree | None = None  # and that is final
        self._wake = threading.Condition(self.lock)  # the ticking thread: deadlines have changed
        self._news = threading.Condition(self.lock)  # watching threads: there may be something new
        self._watches: dict[str, object] = {}
        self._told: set[str] = set()  # that there is no tree
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="membership", daemon=True)

    @property
    def rules(self) -> Rules:
        """The rules of membership."""
        return self.membership.rules

    @property
    def stop_step(self) -> int:
        """The run ends before this step; 0: after its last."""
        return self._stop_step

    @property
    def progress(self) -> float:
        """The mean of the steps that peers have done, by what they told last."""
        with self.lock:
            return self.membership.progress

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
        if isinstance(event, Join | Renew) and not self.config.topology.self_heal:
            event = replace(event, tree=None)  # here no peer has a say in it
        with self.lock:
            decisions = self.membership.handle(event, self._clock())
            self._act(decisions)
            if isinstance(event, Renew) and not self._stop_step:
                self._consider_the_end(event)
            if not self.membership.settled:
                self._wake.notify_all()
            return decisions

    def fail(self, error: Exception) -> None:
        """What the coordinator rests on is gone: it ends. From any thread."""
        self.failure = self.failure or error
        self.ended.set()

    def tell(self, notice: Notice) -> None:
        """Let all listeners know."""
        with self.lock:
            self._tell(notice)

    # --- news ------------------------------------------------------------------------------------

    def watch(self, peer_id: str, incarnation: int, active: Callable[[], bool]) -> Iterator[News]:
        """What a member should know from now on: each epoch that it is in, or who is awaited.

        Only the latest counts: a slow reader skips what is out of date. Ends with a `WatchEnd`, or
        with `NoTree`.
        `active` says whether the peer still listens; call `nudge` when that changes.
        """
        token = object()
        with self.lock:
            member = self.membership.members.get(peer_id)
            is_members = member is not None and member.incarnation == incarnation
            if is_members and active():  # no stranger ends its watch, nor a dead call
                self._watches[peer_id] = token
                self._news.notify_all()
        news: News | None = None
        try:
            while not isinstance(news, WatchEnd | NoTree):
                news = self._await_news(
                    news, lambda: self._news_for(peer_id, incarnation, token, active)
                )
                yield news
                if isinstance(news, NoTree):
                    self._note_told(peer_id)
        finally:
            with self.lock:
                if self._watches.get(peer_id) is token:
                    del self._watches[peer_id]

    def _await_news(self, seen: News | None, look: Callable[[], News | None]) -> News:
        with self.lock:
            while (news := look()) is None or news == seen:
                self._news.wait()
            return news

    def _note_told(self, peer_id: str) -> None:
        with self.lock:
            self._told.add(peer_id)
            self._news.notify_all()

    def await_told(self, timeout_s: float) -> None:
        """Wait until all members know that there is no tree: one may have joined just now, and be
        about to watch."""
        with self.lock:
            present = set(self.no_tree.present) if self.no_tree else set()
            self._news.wait_for(lambda: present <= self._told, timeout_s)

    def nudge(self) -> None:
        """Let watching threads look whether their peer still listens."""
        with self.lock:
            self._news.notify_all()

    def _news_for(
        self, peer_id: str, incarnation: int, token: object, active: Callable[[], bool]
    ) -> News | None:
        if self.no_tree:
            return self.no_tree
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
            self.fail(error)

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
            elif isinstance(decision, NoTree) and decision.is_final:
                self.no_tree = decision
                self.ended.set()
            elif isinstance(decision, RunFinished):
                self.ended.set()
        self._news.notify_all()

    def _publish(self, elected: Elected) -> None:
        layout = self._lay_out({m.peer_id: m.weight for m in elected.members}, elected.tree)
        digest = layout.digest({m.peer_id: m.incarnation for m in elected.members})
        if self._stopping_rule.began_at is None:
            self._stopping_rule.began_at = time.time()
        self._save(elected)
        self.membership.published(layout.neighbourhoods())
        self.publication = Publication(elected, layout, digest, self._stop_step)
        self._tell(self.publication)

    def _save(self, elected: Elected) -> None:
        began_at = self._stopping_rule.began_at or 0.0
        fingerprint = self.membership.fingerprint
        memory = Memory(elected.term, elected.number, fingerprint, began_at, self._stop_step)
        self._store.save(memory)

    def _consider_the_end(self, renew: Renew) -> None:
        """Publish the step before which all end, far enough ahead that all can hear of it, if it is
        time to: on disk first, so that a coordinator that comes back tells the same."""
        published, members = self.publication, self.membership.members
        if published is None or not members:
            return
        if renew.swarm and renew.peer_id in members and renew.swarm.step <= self.config.steps:
            measuring = sum(member.weight > 0 for member in published.elected.members)
            self._stopping_rule.heard(renew.peer_id, renew.swarm, measuring)
        reason = self._stopping_rule.due(time.time(), members)
        if reason is None:
            return
        reports = [member.progress for member in members.values()]
        step = effective_step(reports, self._clock()) + published.layout.diameter
        self._stop_step = min(step, self.config.steps)
        try:
            self._save(published.elected)
        except Exception as error:  # noqa: BLE001  # whatever the store says
            self._stop_step = 0
            self.fail(error)
            return
        self.publication = replace(published, stop_step=self._stop_step)
        self._tell(StopPublished(self._stop_step, reason))
        self._news.notify_all()

    def _lay_out(self, weights: Mapping[str, float], tree: HealedTree | None = None) -> Layout:
        """The tree that the peers (by what they weigh) have made themselves, or a new one."""
        peers = [*weights]
        if tree:
            with suppress(GraphError):  # what peers say need not be true
                edges, links = tree.edges, tree.links
                return lay_out_tree(self.config, peers, tree.root, edges, links, weights)
        members = self.membership.members
        dial_only = {peer for peer in peers if peer in members and members[peer].dial_only}
        return lay_out(self.config, peers, self._file_graph, weights, dial_only)

    def _tell(self, notice: Notice) -> None:
        for listener in self.listeners:
            listener(notice)
