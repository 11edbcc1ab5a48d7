"""A pairwise exchange as the partner serves it: takes the offer, waits, sends the reply.

While it waits the algorithm goes on as it likes; it answers an offer once it has come to it. What
is reported makes counters true: an offer that was taken, but whose reply was not sent whole, is
reported broken; a reply that was sent whole, but not answered, as sent without an answer.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager

from peer.algorithms.core import Head, Kind, PeerId, Verdict
from peer.transport.intake import Answer, Intake, Part, Reception, answer_in, next_header
from peer.transport.visits import Visit
from peer.transport.wire import Envelope, MalformedError, verdict_of
from relayswarm.peer.v1 import peer_pb2 as pb

PROCEED = pb.ExchangeResponse(proceed=True).SerializeToString()


class Partner:
    """One call. `following` gives the next part that the initiator sends; `is_from` turns away who
    speaks for another; `open_visit` opens the visit of an offer that was admitted, or gives None if
    there are too many."""

    def __init__(
        self,
        intake: Intake,
        following: Callable[[], Part],
        is_from: Callable[[PeerId], None],
        open_visit: Callable[[Head], AbstractContextManager[Visit | None]],
    ) -> None:
        self._intake, self._following = intake, following
        self._is_from, self._open_visit = is_from, open_visit

    def responses(self) -> Iterator[bytes]:
        """Serialized ExchangeResponses. Raises MalformedError."""
        offer = next_header(self._following, Kind.OFFER)
        self._is_from(offer.head.sender)
        verdict = self._intake.admit(offer)
        if verdict is not Verdict.ACCEPTED:
            yield self._response(Answer(verdict))
            return
        with self._open_visit(offer.head) as visit:
            if visit is None:
                self._intake.handler.refused(Verdict.BUSY, offer.head)
                yield self._response(Answer(Verdict.BUSY))
                return
            try:
                yield from self._take(offer, visit)
                if visit.is_taken:
                    yield from self._send(visit)
            finally:
                self._settle(visit)

    def _take(self, offer: Envelope, visit: Visit) -> Iterator[bytes]:
        """Take the offer, in as many tries as it needs."""
        while True:
            answer = self._intake.start(offer)
            if isinstance(answer, Reception):
                with answer as reception:
                    yield PROCEED
                    answer = reception.take(self._following)
            visit.is_taken = answer.verdict is Verdict.ACCEPTED
            yield self._response(answer)
            if answer.verdict is not Verdict.DECODE_FAILED:
                return
            again = next_header(self._following, Kind.OFFER, skip=True)
            if again.head != offer.head:
                raise MalformedError("header: of another offer; make a call for each")
            offer = again

    def _send(self, visit: Visit) -> Generator[bytes, None, None]:
        """Send the reply, once there is one, in as many tries as it needs."""
        reply = visit.wait()
        if reply is None or visit.is_over:
            return
        letter, reports = reply
        while True:
            letter.write_rounded()
            for response in letter.requests(pb.ExchangeResponse):
                reports.bytes_out(len(response), letter.wire_format)
                yield response
            answer = answer_in(self._following())
            verdict = verdict_of(answer)
            if verdict is not Verdict.DECODE_FAILED or not letter.reject(answer.wanted_bits):
                visit.verdict = verdict
                return
            reports.retried(visit.offer.sender, verdict.name)
            letter.attempt += 1

    def _settle(self, visit: Visit) -> None:
        """The call is over: report what became of it."""
        reply = visit.close()
        arrives = reply is not None and (visit.verdict is not None or reply.letter.is_complete)
        if visit.is_taken and not arrives and not visit.is_silent:
            self._intake.handler.broken(visit.offer)
        if reply is not None:
            reply.letter.close()
            reply.reports.sent(visit.offer.sender, reply.letter.head, visit.verdict)

    def _response(self, answer: Answer) -> bytes:
        response = self._intake.response(answer)
        return pb.ExchangeResponse(answer=response).SerializeToString()
