"""The thread that sends to one neighbour, and tries again where that helps.

In each slot (kind, tree) messages go out one after the other, in order, and at most `BACKLOG` of
them wait or are under way; one more and the oldest is given up (rule R7). An algorithm cancels
sooner, by its own bound; this is the largest of these, that of methods with overlap.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from functools import partial

import grpc

from peer.algorithms.core import Head, Kind, PeerId, Verdict
from peer.codec.edges import Forecast
from peer.process import compute_alone
from peer.transport.account import UnrecordedError
from peer.transport.contract import Reports
from peer.transport.letter import Letter, Slot
from peer.transport.link import NoLinkError, Way, call_on
from peer.transport.wire import verdict_of, whole_part
from relayswarm.net.sparing import SparingLog
from relayswarm.peer.v1 import peer_pb2 as pb

BACKLOG = 3
METRIC_BACKLOG = 32  # they are small, and no newer one holds what is in an older one
FIRST_BACKOFF_S = 0.05
LONGEST_BACKOFF_S = 1.0
SHORTEST_RETRY_S, LONGEST_RETRY_S = 0.01, 0.2  # after BUSY and EPOCH_AHEAD
RETRY_GROWTH_LIMIT = 1 << 10
PROBE_AFTER_S = 1.0  # without anything to send
UNARY_TIMEOUT_S = 20.0  # for a peer that is connected but hangs

_UNREACHABLE = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}
_PASSING = _UNREACHABLE | {
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.INTERNAL,
}

log = logging.getLogger(__name__)


class Sender:
    """Sends to `peer`, at whatever address it was last said to have; `way_to` it is made."""

    def __init__(
        self, peer: PeerId, reports: Reports, way_to: Callable[[str], Way], forecast: Forecast
    ) -> None:
        self.peer = peer
        self._way_to = way_to
        self._reports = reports
        self._forecast = forecast  # the thread's alone
        self._changed = threading.Condition()
        self._slots: defaultdict[Slot, deque[Letter]] = defaultdict(deque)
        self._under_way: Letter | None = None
        self._link: Way | None = None
        self._not_before = 0.0  # no attempt sooner, monotonic seconds
        self._backoff_s = FIRST_BACKOFF_S
        self._down = False
        self._sparing = SparingLog(log)
        self._draining = False
        self._closed = False
        self._thread = threading.Thread(
            target=self._run, name=f"relayswarm-send-{peer}", daemon=True
        )
        self._thread.start()

    # --- called from outside ------------------------------------------------------------------

    def post(self, letter: Letter) -> None:
        """Send this as soon as possible."""
        with self._changed:
            given_up = [letter] if self._closed else self._enqueue(letter)
            self._changed.notify_all()
        self._report_unsent(given_up)

    def cancel(self, head: Head) -> None:
        """Stop sending that message, if it has not been answered yet."""
        with self._changed:
            found = [x for slot in self._slots.values() for x in slot if x.head == head]
            given_up = [letter for letter in found if self._give_up(letter)]
        self._report_unsent(given_up)

    def move(self, address: str) -> None:
        """From now on the peer is there; what is under way to another address is sent again, and
        whether that could be reached says nothing of this one."""
        with self._changed:
            if self._closed or (self._link is not None and self._link.address == address):
                return
            old, self._link = self._link, self._way_to(address)
            self._not_before, self._backoff_s = 0.0, FIRST_BACKOFF_S
            self._down = False
            self._changed.notify_all()
        if old is not None:
            old.close()

    @property
    def is_down(self) -> bool:
        """Whether the peer could not be reached at the last attempt, a probe's included."""
        return self._down

    @property
    def link(self) -> Way | None:
        """For a call of another thread's to the same peer, whose end it tells with `ended`."""
        with self._changed:
            return self._link

    def ended(self, code: grpc.StatusCode, link: Way | None) -> None:
        """A call on that link ended with this status: can the peer be reached?"""
        if code in _UNREACHABLE:
            self._missed(link)
        elif code is not grpc.StatusCode.CANCELLED:
            self._reached()
        if code not in _PASSING and code is not grpc.StatusCode.OK:
            self._sparing.warning(code.name, f"{self.peer} refuses a message: {code.name}")

    def drain(self) -> None:
        """Take the end to be near: if the peer does not answer now, stop at once."""
        with self._changed:
            self._draining = True
            down = self._down
        if down:
            self.stop()

    def wait_empty(self, deadline: float) -> bool:
        """Wait until all is answered or given up, or `deadline` (monotonic seconds) has come."""
        with self._changed:
            return self._changed.wait_for(self._is_empty, max(deadline - time.monotonic(), 0))

    def stop(self) -> None:
        """Cut off what is under way, give up what waits, end the thread."""
        with self._changed:
            self._closed = True
            given_up = self._give_up_all()
            link, self._link = self._link, None
            self._changed.notify_all()
        self._report_unsent(given_up)
        if link is not None:
            link.close()

    def join(self) -> None:
        """Wait for the end of the thread, after `stop`."""
        self._thread.join()

    # --- the queue; all under self._changed ---------------------------------------------------

    def _enqueue(self, letter: Letter) -> list[Letter]:
        """Returns what is given up for it unsent."""
        slot = self._slots[letter.slot]
        slot.append(letter)
        proper = [letter for letter in slot if not letter.extra]
        most = METRIC_BACKLOG if letter.head.kind is Kind.METRIC else BACKLOG
        return [proper[0]] if len(proper) > most and self._give_up(proper[0]) else []

    def _give_up(self, letter: Letter) -> bool:
        """Take a letter out; True if the caller is to report it, else the thread will."""
        self._slots[letter.slot].remove(letter)
        letter.cancelled = True
        if letter.call is not None and not letter.is_complete:  # else there is nothing to stop, and
            letter.call.cancel()  # its answer says how the next one is best written
        return letter is not self._under_way

    def _give_up_all(self) -> list[Letter]:
        letters = [letter for slot in self._slots.values() for letter in slot]
        return [letter for letter in letters if self._give_up(letter)]

    def _is_empty(self) -> bool:
        return self._under_way is None and not any(self._slots.values())

    def _first(self) -> Letter | None:
        """The letter whose turn comes first."""
        firsts = [slot[0] for slot in self._slots.values() if slot]
        return min(firsts, key=lambda letter: letter.not_before, default=None)

    def _report_unsent(self, letters: list[Letter]) -> None:
        for letter in letters:
            self._report(letter, None)

    # --- the thread ---------------------------------------------------------------------------

    def _run(self) -> None:
        compute_alone()
        while (turn := self._next()) is not None:
            letter, link = turn
            if letter is None:
                self._attempt(partial(self._probe, link))
            elif not self._attempt(partial(self._deliver, letter, link)):
                self._attempt(partial(self._abandon, letter))

    def _attempt(self, action: Callable[[], None]) -> bool:
        """The thread's top boundary: one that died would leave the neighbour without messages, and
        nobody would know. Returns whether all went well."""
        try:
            action()
        except Exception as error:  # noqa: BLE001  # whatever a payload or a report raises
            self._sparing.exception(type(error).__name__, f"sending to {self.peer} failed")
            return False
        return True

    def _deliver(self, letter: Letter, link: Way | None) -> None:
        """One try."""
        try:
            response = self._exchange(letter, link)
        except grpc.RpcError as error:
            self._failed(letter, error.code(), link)
        except UnrecordedError:
            self._finish(letter, None)
        except grpc.FutureCancelledError:
            self._failed(letter, grpc.StatusCode.CANCELLED, link)
        except NoLinkError as error:
            self._failed(letter, error.code, link)
        else:
            self._answered(letter, response)

    def _abandon(self, letter: Letter) -> None:
        """A try ended in an error of this peer's own: give the letter up, unless that was done."""
        with self._changed:
            if letter.cancelled and letter is not self._under_way:
                return  # and reported
            self._under_way = letter  # so that nobody else reports it
        self._finish(letter, None)

    def _next(self) -> tuple[Letter | None, Way | None] | None:
        """Wait for the next letter that may be sent, for a time without any, or for the end."""
        with self._changed:
            while not self._closed:
                letter = self._first()
                if letter is None:
                    if not self._changed.wait(PROBE_AFTER_S) and not self._first():
                        return None, self._link
                    continue
                wait_s = max(letter.not_before, self._not_before) - time.monotonic()
                if wait_s <= 0:
                    self._under_way = letter
                    return letter, self._link
                self._changed.wait(wait_s)
        return None

    def _probe(self, link: Way | None) -> None:
        """Is the peer still there? Who has sent all he has, and waits for a neighbour's message,
        would not notice its death otherwise."""
        try:
            call_on(link, lambda link: link.probe(PROBE_AFTER_S))
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                self._missed(link)
        except NoLinkError:
            pass
        else:
            self._reached()

    def _exchange(self, letter: Letter, link: Way | None) -> pb.RelayResponse:
        letter.write(self._forecast)
        if link is not None and letter.small:
            request = letter.whole()
            if link.send_whole is not None:
                response = call_on(link.send_whole, lambda send: send(request, UNARY_TIMEOUT_S))
                self._reports.bytes_out(len(request), letter.wire_format)
                return response
            requests = self._whole(letter, request)
        else:
            requests = letter.requests()
        errors: list[Exception] = []
        parts = self._counted(letter, requests, errors)
        call = call_on(link, lambda link: link.send(parts))
        with self._changed:
            letter.call = call
            if letter.cancelled and not letter.is_complete:
                call.cancel()
        try:
            return call.result()
        except Exception:
            if errors:  # the call's end says nothing of the peer
                raise errors[0] from None
            raise

    def _whole(self, letter: Letter, request: bytes) -> Iterator[bytes]:
        letter.is_complete = True
        yield whole_part(request)

    def _counted(
        self, letter: Letter, requests: Iterator[bytes], errors: list[Exception]
    ) -> Iterator[bytes]:
        """Drawn from by a thread that sends; what goes wrong here breaks the call off."""
        try:
            for request in requests:
                self._reports.bytes_out(len(request), letter.wire_format)
                yield request
        except Exception as error:
            errors.append(error)
            raise

    def _answered(self, letter: Letter, response: pb.RelayResponse) -> None:
        self._reached()
        verdict = verdict_of(response)
        if verdict in (Verdict.EPOCH_AHEAD, Verdict.BUSY):
            self._again(letter, retry_s(response, letter.attempt), verdict.name)
        elif verdict is Verdict.DECODE_FAILED and letter.reject(response.wanted_bits):
            self._again(letter, 0.0, verdict.name)
        else:
            if verdict is Verdict.ACCEPTED and len(response.max_distances) == letter.sections:
                self._forecast.answered(letter.head, response.max_distances)
            self._finish(letter, verdict)

    def _failed(self, letter: Letter, code: grpc.StatusCode, link: Way | None) -> None:
        self.ended(code, link)
        if code in _PASSING:
            wait_s = FIRST_BACKOFF_S * growth(letter.attempt)
            self._again(letter, min(wait_s, LONGEST_BACKOFF_S), code.name)
        else:
            self._finish(letter, None)

    def _reached(self) -> None:
        with self._changed:
            self._down, self._backoff_s = False, FIRST_BACKOFF_S

    def _missed(self, link: Way | None) -> None:
        with self._changed:
            if self._closed or link is not self._link:
                return  # the peer is elsewhere by now, or nobody's business any more
            news, self._down = not self._down, True
            self._not_before = time.monotonic() + self._backoff_s
            self._backoff_s = min(2 * self._backoff_s, LONGEST_BACKOFF_S)
        if news:
            self._reports.unreachable(self.peer)

    def _again(self, letter: Letter, wait_s: float, reason: str) -> None:
        """Put a letter back, unless it was cancelled meanwhile or there is no time left."""
        with self._changed:
            again = not letter.cancelled and not (self._draining and self._down)
            if again:
                letter.attempt += 1
                letter.not_before = time.monotonic() + wait_s
                self._under_way = letter.call = None
        if again:
            self._reports.retried(self.peer, reason)
        else:
            self._finish(letter, None)

    def _finish(self, letter: Letter, verdict: Verdict | None) -> None:
        with self._changed:
            if not letter.cancelled:
                self._slots[letter.slot].remove(letter)
                letter.cancelled = True  # no one else shall give it up now
        try:
            self._report(letter, verdict)
        finally:
            with self._changed:
                self._under_way = None
                self._changed.notify_all()

    def _report(self, letter: Letter, verdict: Verdict | None) -> None:
        try:
            letter.close()
        finally:
            if not letter.extra:
                self._reports.sent(self.peer, letter.head, verdict)


def retry_s(response: pb.RelayResponse, attempt: int) -> float:
    """When to try again after BUSY and EPOCH_AHEAD, seconds from now: as the receiver says, and
    never without a pause, also where it says nothing."""
    first_s = max(response.retry_after_ms / 1000, SHORTEST_RETRY_S)
    return min(first_s * growth(attempt), LONGEST_RETRY_S)


def growth(attempt: int) -> int:
    """By how much the wait after an attempt (from 0) is longer than the first one."""
    return RETRY_GROWTH_LIMIT if attempt > 10 else 1 << attempt
