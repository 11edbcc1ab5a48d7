"""Exchanges at the partner: one call each, which waits until the algorithm answers the offer.

A handler's thread waits while the partner trains on, so there are few of them: one for each
initiator, which has one call at a time, and at most `MOST` in all; others hear that the peer is
busy, as they do from the algorithm itself while it is engaged.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import grpc

from peer.algorithms.core import Head, PeerId, Verdict
from peer.transport.contract import Reports
from peer.transport.letter import Letter

MOST = 8


class Reply(NamedTuple):
    """A letter, and who is to know what became of it."""

    letter: Letter
    reports: Reports


class Visit:
    """One call: waits for the letter that the algorithm answers it with."""

    def __init__(self, offer: Head, cancel: Callable[[], object]) -> None:
        self.offer = offer
        self._changed = threading.Condition()
        self._cancel = cancel
        self._reply: Reply | None = None
        self._is_over = False
        self.is_taken = False  # the offer
        self.is_silent = False  # the reply is lost, and the initiator is not to know
        self.verdict: Verdict | None = None  # the initiator's, on the reply

    def reply(self, letter: Letter, reports: Reports) -> bool:
        """Send this to the initiator, and report it as sent; False if nobody listens any more."""
        with self._changed:
            taken = not self._is_over and self._reply is None
            if taken:
                self._reply = Reply(letter, reports)
                self._changed.notify_all()
            return taken

    def wait(self) -> Reply | None:
        """The reply, once there is one and it may be sent, or the call is over."""
        with self._changed:
            while not self._is_over:
                wait_s = None
                if self._reply is not None:
                    wait_s = self._reply.letter.not_before - time.monotonic()
                    if wait_s <= 0:
                        break
                self._changed.wait(wait_s)
            return self._reply

    @property
    def is_over(self) -> bool:
        """Whether nothing can be sent to the initiator any more."""
        return self._is_over

    def end(self) -> None:
        """The call is over, or shall be."""
        with self._changed:
            self._is_over = True
            self._changed.notify_all()

    def close(self) -> Reply | None:
        """The call is over; returns the reply, if there is one."""
        self.end()
        with self._changed:
            return self._reply

    def silence(self) -> None:
        """Lose the reply without a word."""
        self.is_silent = True
        self.end()

    def cut(self) -> None:
        """Break the call off, wherever it is."""
        self._cancel()  # first: the thread that serves it would end it in order
        self.end()


class Visits:
    """Those under way at one peer."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._visits: dict[PeerId, Visit] = {}  # by initiator

    @contextmanager
    def open(self, offer: Head, context: grpc.RpcContext) -> Iterator[Visit | None]:
        """A call comes in; None if there is no room for it. An earlier one of the same initiator is
        over: it makes one at a time."""
        visit = Visit(offer, context.cancel)
        with self._guard:
            earlier = self._visits.pop(offer.sender, None)
            has_room = len(self._visits) < MOST
            if has_room:
                self._visits[offer.sender] = visit
        if earlier is not None:
            earlier.end()
        if not has_room:
            yield None
            return
        if not context.add_callback(visit.end):
            visit.end()
        try:
            yield visit
        finally:
            visit.end()
            with self._guard:
                if self._visits.get(offer.sender) is visit:
                    del self._visits[offer.sender]

    def of(self, initiator: PeerId, reply: Head) -> Visit | None:
        """The visit that a reply belongs to."""
        with self._guard:
            visit = self._visits.get(initiator)
        fits = visit is not None and visit.offer.exchange == reply.exchange
        return visit if fits else None
