"""Gives a peer's healer a thread, a clock and neighbours: see `peer.healing` for what it decides.

What belongs here: when this peer counts as being without a coordinator. One that cannot be reached
is no reason to leave the tree that it made: not before a neighbour is gone, or greets us because it
has lost one, or the lease is over, so that the coordinator has let us go if it lives.
"""

from __future__ import annotations

import hashlib
import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from coordinator.members import FIRST_HEALED_NUMBER
from peer.algorithms.core import View
from peer.healing import (
    MAX_TAG,
    Event,
    Healer,
    Heard,
    Led,
    Paced,
    Say,
    Tick,
    Timers,
    Unreachable,
    Viewed,
)
from peer.hellos import Commit, Hello, Seat
from relayswarm import logs

log = logging.getLogger("relayswarm.peer")

BACKLOG = 1024
"""While so many events wait, hellos are lost."""
WINDOW_S = 1.0
"""Over which a peer's pace is measured, at least."""


class Says(Protocol):
    """How hellos get to neighbours."""

    def say(self, to: Seat, hello: Hello) -> None: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class Away:
    """How long the coordinator has been away, seconds; None: it answers."""

    seconds: float | None


@dataclass(frozen=True)
class _End:
    """Of the thread."""


_Item: TypeAlias = Event | Away | _End


@dataclass(frozen=True)
class Surroundings:
    """What a healer's thread asks and tells the peer around it."""

    step: Callable[[], int]  # that the algorithm is at
    has_lost: Callable[[], bool]  # whether a neighbour cannot be reached
    ask_coordinator: Callable[[], None]  # whether it is there, without delay
    adopt: Callable[[Commit], None]
    failed: Callable[[Exception], None]


class SelfHealing:
    """A healer at work, from `start` to `stop`. Any thread may call it."""

    def __init__(
        self, me: Seat, timers: Timers, lease_s: float, greeter: Says, around: Surroundings
    ) -> None:
        self._healer = Healer(me, tag_of(me), timers)
        self._lease_s, self._greeter, self._around = lease_s, greeter, around
        self._items: queue.SimpleQueue[_Item] = queue.SimpleQueue()
        self._away_s: float | None = None
        self._pace = Pace()
        self._commit: Commit | None = None
        self._thread = threading.Thread(target=self._run, name="healing", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """Fall silent: neighbours will take this peer for gone. Nothing is adopted after this."""
        if self._thread.is_alive():
            self._items.put(_End())
            self._thread.join()

    @property
    def commit(self) -> Commit | None:
        """The tree that this peer is in, if no coordinator made it."""
        return self._commit

    def viewed(self, view: View, addresses: dict[str, str]) -> None:
        """The coordinator has published a view."""
        seats = tuple(Seat(p, life, addresses[p]) for p, life in view.members.items())
        tree = frozenset(peer for tree in view.trees for peer in tree)
        self._items.put(Viewed(view.epoch.age, seats, tree, view.neighbours))

    def away(self, seconds: float | None) -> None:
        """The coordinator has been away for so long; None: it answers."""
        self._items.put(Away(seconds))

    def heard(self, hello: Hello) -> None:
        """A neighbour's bridge speaks."""
        if self._items.qsize() < BACKLOG:
            self._items.put(Heard(hello))

    def unreachable(self, peer: str) -> None:
        """The transport cannot reach that peer."""
        self._items.put(Unreachable(peer))

    # --- in the thread -----------------------------------------------------------------------

    def _run(self) -> None:
        """The thread's top boundary. What goes wrong here ends the peer."""
        try:
            while (item := self._next()) != _End():
                self._take(item)
        except Exception as error:  # noqa: BLE001
            self._around.failed(error)
        finally:
            self._greeter.close()

    def _next(self) -> _Item:
        deadline = self._healer.next_deadline()
        left_s = None if deadline is None else max(0.0, deadline - time.monotonic())
        try:
            return self._items.get(timeout=left_s)
        except queue.Empty:
            return Tick()

    def _take(self, item: _Item) -> None:
        match item:
            case Away(seconds):
                self._away_s = seconds
                self._consider()
            case Viewed():
                self._feed(item)
                if self._healer.held == item.age:
                    self._commit = None
            case Heard():
                if self._healer.led and self._away_s is None:
                    self._around.ask_coordinator()
                elif self._healer.led:
                    self._leave()
                self._feed(item)
            case Unreachable():
                if self._away_s is not None:
                    self._leave()
                self._feed(item)
            case Tick():
                self._feed(self._pace.at(self._around.step(), time.monotonic()))
                self._feed(item)

    def _consider(self) -> None:
        """Whether the coordinator leads, now that we know whether it is there."""
        if self._away_s is None:
            if self._healer.held[1] < FIRST_HEALED_NUMBER:
                self._feed(Led(True))
        elif self._away_s >= self._lease_s or self._around.has_lost():
            self._leave()

    def _leave(self) -> None:
        if self._healer.led and self._healer.held > (0, 0):
            text = "no coordinator: repairing the tree with the neighbours"
            logs.event(log, logging.INFO, "self_healing", text)
            self._feed(Led(False))

    def _feed(self, event: Event) -> None:
        for effect in self._healer.handle(event, time.monotonic()):
            if isinstance(effect, Say):
                self._greeter.say(effect.to, effect.hello)
            else:
                self._commit = effect.commit
                self._pace = Pace()  # who goes on from another step was not that fast
                self._around.adopt(effect.commit)


class Pace:
    """A peer's steps, and how many it takes per second."""

    def __init__(self) -> None:
        self._since: tuple[float, int] | None = None
        self._rate = 0.0

    def at(self, step: int, now: float) -> Paced:
        """Where it is."""
        if self._since is None:
            self._since = (now, step)
        began, first = self._since
        if now - began >= WINDOW_S:
            self._rate = max(0.0, (step - first) / (now - began))
            self._since = (now, step)
        return Paced(step, self._rate)


def tag_of(me: Seat) -> int:
    """A number for this life of the peer that, for all practical purposes, no other has."""
    text = f"{me.peer}\n{me.incarnation}".encode()
    digest = hashlib.blake2b(text, digest_size=8).digest()
    return 1 + int.from_bytes(digest, "big") % (MAX_TAG - 1)
