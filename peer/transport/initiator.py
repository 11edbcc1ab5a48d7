"""Pairwise exchanges as the initiator makes them: one call at a time, in a thread of its own.

The offer is reported as sent once it is answered, the reply as received like any other message. A
call that ends without either is reported broken, as this peer's own offer; except where the partner
ends it without an error, upon which nothing more is to come: a loss that is to go unnoticed.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import grpc

from peer.algorithms.core import Head, Kind, Verdict
from peer.transport.contract import Contract, Handler, Reports
from peer.transport.intake import Answer, Intake, Part, answer_in, next_header
from peer.transport.letter import Letter
from peer.transport.link import NoLinkError, Way, call_on
from peer.transport.requests import Requests
from peer.transport.sender import Sender, retry_s
from peer.transport.wire import MalformedError, parse_part, verdict_of
from relayswarm.net.gate import Denial
from relayswarm.peer.v1 import peer_pb2 as pb

log = logging.getLogger(__name__)

ARRIVED = (Verdict.ACCEPTED, Verdict.DUPLICATE)


class _Ended(Exception):
    """The partner ended the stream."""


class Initiator:
    """Makes the calls of one peer. Its algorithm makes one at a time, and cancels it before the
    next."""

    def __init__(self, handler: Handler, contract: Contract, reports: Reports) -> None:
        self._intake, self._reports = Intake(handler, contract), reports
        self._changed = threading.Condition()
        self._calls: deque[_Call] = deque()  # the first is under way
        self._closed = False
        self._thread: threading.Thread | None = None

    def call(self, sender: Sender, letter: Letter) -> None:
        """Make an offer to that neighbour."""
        call = _Call(sender, letter, self._intake, self._reports)
        with self._changed:
            closed = self._closed
            if not closed:
                self._calls.append(call)
                self._changed.notify_all()
            if not closed and self._thread is None:
                name = "relayswarm-exchange"
                self._thread = threading.Thread(target=self._run, name=name, daemon=True)
                self._thread.start()
        if closed:
            call.report(None)

    def cancel(self, offer: Head) -> None:
        """Break that call off, if it is not over."""
        with self._changed:
            calls = [call for call in self._calls if call.letter.head == offer]
        for call in calls:
            call.cancel()

    def wait_idle(self, deadline: float) -> None:
        """Wait until all calls are over, or `deadline` (monotonic seconds) has come."""
        with self._changed:
            self._changed.wait_for(lambda: not self._calls, max(deadline - time.monotonic(), 0))

    def stop(self) -> None:
        """Break all calls off, and end the thread."""
        with self._changed:
            self._closed = True
            calls = list(self._calls)
            self._changed.notify_all()
        for call in calls:
            call.cancel()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while (call := self._next()) is not None:
            try:
                call.make()
            except Exception:  # a thread that died would leave the peer without partners
                log.exception("an exchange with %s failed", call.sender.peer)
            finally:
                call.settle()
                with self._changed:
                    self._calls.popleft()
                    self._changed.notify_all()

    def _next(self) -> _Call | None:
        with self._changed:
            self._changed.wait_for(lambda: self._calls or self._closed)
            return self._calls[0] if self._calls else None


class _Call:
    """One exchange with a neighbour."""

    def __init__(self, sender: Sender, letter: Letter, intake: Intake, reports: Reports) -> None:
        self.sender, self.letter = sender, letter
        self._intake, self._reports = intake, reports
        self._changed = threading.Condition()
        self._cancelled = False
        self._stream: Any = None  # what gRPC's stubs return has no type of its own
        self._reported = False
        self._awaits_reply = False

    def cancel(self) -> None:
        """Break it off, from any thread."""
        with self._changed:
            self._cancelled = True
            self._changed.notify_all()
            if self._stream is not None:
                self._stream.cancel()

    def make(self) -> None:
        """Go through with it, in as many tries as it takes."""
        while self._may_begin():
            link = self.sender.link
            try:
                wait_s = self._place(link)
            except _Ended:
                self._awaits_reply = False
                return
            except NoLinkError as error:
                self.sender.ended(error.code, link)
                return
            except grpc.RpcError as error:
                self.sender.ended(error.code(), link)
                return
            except MalformedError as error:
                text = f"{self.sender.peer} sends nonsense in an exchange: {error}"
                self._intake.handler.denied(Denial.MALFORMED, text)
                return
            if wait_s is None:
                return
            self._reports.retried(self.sender.peer, Verdict.EPOCH_AHEAD.name)
            self.letter.attempt += 1
            self.letter.not_before = time.monotonic() + wait_s

    def settle(self) -> None:
        """It is over: report what has not been."""
        if not self._reported:
            self.report(None)
        elif self._awaits_reply:
            self._intake.handler.broken(self.letter.head)

    def report(self, verdict: Verdict | None) -> None:
        """The offer was answered, or will not be."""
        self._reported = True
        self.letter.close()
        self._reports.sent(self.sender.peer, self.letter.head, verdict)

    def _may_begin(self) -> bool:
        """Wait until the letter may be sent."""
        with self._changed:
            while not self._cancelled:
                wait_s = self.letter.not_before - time.monotonic()
                if wait_s <= 0:
                    return True
                self._changed.wait(wait_s)
        return False

    def _place(self, link: Way | None) -> float | None:
        """One call. Returns after how many seconds to try again, if that may help."""
        outgoing = Requests(self._reports)
        stream = call_on(link, lambda link: link.exchange(outgoing))
        with self._changed:
            self._stream = stream
            if self._cancelled:
                stream.cancel()
        try:
            wait_s = self._converse(iter(stream), outgoing)
        finally:
            outgoing.end()
        self.sender.ended(grpc.StatusCode.OK, link)
        return wait_s

    def _converse(self, responses: Iterator[bytes], outgoing: Requests) -> float | None:
        def following() -> Part:
            response = next(responses, None)
            if response is None:
                raise _Ended
            self._intake.handler.bytes_in(len(response))
            return parse_part(response, pb.ExchangeResponse)

        answer = self._offer(following, outgoing)
        while verdict_of(answer) is Verdict.DECODE_FAILED and self.letter.reject(
            answer.wanted_bits
        ):
            self._reports.retried(self.sender.peer, Verdict.DECODE_FAILED.name)
            self.letter.attempt += 1
            answer = self._offer(following, outgoing)
        verdict = verdict_of(answer)
        if verdict is Verdict.EPOCH_AHEAD:
            return retry_s(answer, self.letter.attempt)
        self._awaits_reply = verdict in ARRIVED
        self.report(verdict)
        if self._awaits_reply:
            self._receive(following, outgoing)
            for _ in responses:  # so that the partner gets the last answer
                pass
        return None

    def _offer(self, following: Callable[[], Part], outgoing: Requests) -> pb.RelayResponse:
        """Send the header, then the payload if it is wanted; returns what became of the offer."""
        self.letter.write_rounded()
        wire_format, parts = self.letter.wire_format, self.letter.requests(pb.ExchangeRequest)
        outgoing.put(iter([next(parts)]), wire_format)
        response = following()
        if isinstance(response, pb.ExchangeResponse) and response.proceed:
            outgoing.put(parts, wire_format)
            response = following()
        return answer_in(response)

    def _receive(self, following: Callable[[], Part], outgoing: Requests) -> None:
        """Take the reply, in as many tries as it needs."""
        skip = False
        while True:
            reply = next_header(following, Kind.REPLY, skip=skip)
            if reply.head.sender != self.sender.peer:
                raise MalformedError(f"sender = {reply.head.sender[:64]!r}: not who was called")
            reception = self._intake.begin(reply)
            answer = reception if isinstance(reception, Answer) else reception.take(following)
            self._awaits_reply = skip = answer.verdict is Verdict.DECODE_FAILED
            response = self._intake.response(answer)
            outgoing.put(iter([pb.ExchangeRequest(answer=response).SerializeToString()]))
            if not skip:
                outgoing.end()
                return
