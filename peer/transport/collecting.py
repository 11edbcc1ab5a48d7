"""What a peer does that can only dial out: it keeps streams open to its neighbours, and on these it
is called as if it had been reached.

What belongs here: a neighbour's messages and offers are taken by the same `Intake` and `Partner`
as those that come in by a port. Each is served by one of a few threads; another one waits on the
next stream meanwhile.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Generator, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import grpc

from peer.algorithms.core import Head, PeerId
from peer.process import compute_alone
from peer.transport.collectors import END
from peer.transport.contract import PAIR_KINDS, Contract, Handler, Reports
from peer.transport.intake import Answer, Intake, Part, Reception, take_whole
from peer.transport.link import Link, NoLinkError, call_on
from peer.transport.partner import Partner
from peer.transport.requests import Requests
from peer.transport.visits import Visit, Visits
from peer.transport.wire import (
    Chunk,
    MalformedError,
    envelope,
    parse_part,
    whole_in,
)
from relayswarm.net.gate import Denial
from relayswarm.net.security import PLAIN, Security
from relayswarm.peer.v1 import peer_pb2 as pb

THREADS = 3
"""For each neighbour: it makes two calls at a time, a message and an exchange; and one waits."""

FIRST_BACKOFF_S, LONGEST_BACKOFF_S = 0.05, 1.0

log = logging.getLogger(__name__)


class Collecting:
    """Collects what neighbours have for `me`. Thread-safe."""

    def __init__(
        self,
        me: PeerId,
        handler: Handler,
        contract: Contract,
        reports: Reports,
        visits: Visits,
        security: Security = PLAIN,
    ) -> None:
        self._me, self._contract, self._security = me, contract, security
        self._tools = _Tools(Intake(handler, contract), visits, reports)
        self._guard = threading.Lock()
        self._lines: dict[PeerId, _Line] = {}
        self._closed = False

    def set_neighbours(self, addresses: Mapping[PeerId, str], incarnation: int) -> None:
        """Collect from these, at HOST:PORT, in this life, and from nobody else."""
        hello = pb.Collector(
            run_id=self._contract.run_id, peer_id=self._me, incarnation=incarnation, stays=True
        )
        with self._guard:
            if self._closed:
                return
            kept = {
                peer: line
                for peer, line in self._lines.items()
                if line.leads_to(addresses.get(peer), hello)
            }
            gone = [line for peer, line in self._lines.items() if peer not in kept]
            self._lines = kept
            for peer in addresses.keys() - kept.keys():
                link = Link(addresses[peer], self._security, peer)
                self._lines[peer] = _Line(peer, link, hello, self._tools)
        for line in gone:
            line.stop()

    def stop(self) -> None:
        """Cut off what is under way, and end all threads."""
        with self._guard:
            self._closed = True
            lines, self._lines = list(self._lines.values()), {}
        for line in lines:
            line.stop()
        for line in lines:
            line.join()


class _Tools:
    """What takes in what comes."""

    def __init__(self, intake: Intake, visits: Visits, reports: Reports) -> None:
        self.intake, self.visits, self.reports = intake, visits, reports


class _Line:
    """To one neighbour."""

    def __init__(self, peer: PeerId, link: Link, hello: pb.Collector, tools: _Tools) -> None:
        self._peer, self._link, self._hello, self._tools = peer, link, hello, tools
        self._turn = threading.Lock()  # held by the thread that waits for a call
        self._stopped = threading.Event()
        self._backoff_s = FIRST_BACKOFF_S
        self._threads = [
            threading.Thread(target=self._run, name=f"relayswarm-collect-{peer}", daemon=True)
            for _ in range(THREADS)
        ]
        for thread in self._threads:
            thread.start()

    def leads_to(self, address: str | None, hello: pb.Collector) -> bool:
        """Whether it is the line that is wanted."""
        return self._link.address == address and self._hello == hello

    def stop(self) -> None:
        """Cut off what is under way."""
        self._stopped.set()
        self._link.close()

    def join(self) -> None:
        """Wait for the threads to end, after `stop`."""
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        compute_alone()
        while not self._stopped.is_set():
            self._serve_next()

    def _serve_next(self) -> None:
        with self._turn:
            call = self._next_call()
        if call is not None:
            call.serve()

    def _next_call(self) -> _Call | None:
        """Open a stream, and wait until a call begins on it; None if it ends without, and another
        one may be tried."""
        outgoing = Requests(self._tools.reports)
        hello = pb.CollectRequest(collector=self._hello).SerializeToString()
        outgoing.put(iter([hello]))
        try:
            stream = call_on(self._link, lambda link: link.collect(outgoing))
            first = next(stream, None)
        except NoLinkError:
            first = None
        except grpc.RpcError as error:
            log.debug("nothing to collect from %s: %s", self._peer, error.code().name)
            first = None
        if first is not None:
            self._backoff_s = FIRST_BACKOFF_S
            return _Call(self._peer, stream, first, outgoing, self._tools)
        outgoing.end()
        self._stopped.wait(self._backoff_s)
        self._backoff_s = min(2 * self._backoff_s, LONGEST_BACKOFF_S)
        return None


class _Closable(Iterator[bytes]):
    """A generator that a thread of gRPC's draws from while it can send, and another one closes once
    it cannot: what was under way in it ends there and then."""

    def __init__(self, generator: Generator[bytes, None, None]) -> None:
        self._generator = generator
        self._turn = threading.Lock()  # one that is running cannot be closed

    def __next__(self) -> bytes:
        with self._turn:
            return next(self._generator)

    def close(self) -> None:
        """Draw no more."""
        with self._turn:
            self._generator.close()


class _Call:
    """A neighbour's calls on one stream: messages, or one exchange in which it is the initiator."""

    def __init__(
        self, peer: PeerId, stream: Any, first: bytes, outgoing: Requests, tools: _Tools
    ) -> None:
        self._peer, self._stream, self._outgoing, self._tools = peer, stream, outgoing, tools
        self._first: bytes | None = first
        self._has_answered = False  # a message

    def serve(self) -> None:
        """Take what comes until it ends."""
        try:
            while self._first is not None:
                self._serve()
        except MalformedError as error:
            self._is_nonsense(error)
        except grpc.RpcError as error:  # what it was about has been reported as broken
            log.debug("a call of %s broke: %s", self._peer, error.code().name)
        except Exception:  # a thread that died would leave the neighbour without streams
            log.exception("a call of %s failed", self._peer)
            self._stream.cancel()
        finally:
            self._outgoing.end()

    def _serve(self) -> None:
        part = self._first or b""
        whole = whole_in(part)
        if whole is None:
            answer = self._take_parts()
        else:
            self._tools.intake.handler.bytes_in(len(part))
            answer = take_whole(whole, self._begin)
        if answer is not None:
            answered = pb.CollectRequest(answer=self._tools.intake.response(answer))
            self._outgoing.put(iter([answered.SerializeToString()]))
            self._has_answered = True
            self._first = next(self._stream, None)

    def _take_parts(self) -> Answer | None:
        """None: it was no message, and is seen to."""
        part = self._following()
        if isinstance(part, Chunk) or not part.HasField("header"):
            if self._has_answered:  # it was under way when the verdict was clear
                self._first = next(self._stream, None)
                return None
            raise MalformedError("header: missing; begin with that of the message")
        if part.header.kind == pb.KIND_OFFER:
            self._be_partner(part)
            return None
        reception = self._begin(part.header)
        return reception if isinstance(reception, Answer) else reception.take(self._following)

    def _begin(self, header: pb.MessageHeader) -> Reception | Answer:
        message = envelope(header)
        self._is_from(message.head.sender)
        if message.head.kind in PAIR_KINDS:
            raise MalformedError(f"kind = {header.kind}: nobody has asked for it")
        return self._tools.intake.begin(message)

    def _be_partner(self, first: Part) -> None:
        """What is sent is made in a thread of gRPC's, as it can be sent."""
        ended = threading.Event()
        if not self._stream.add_callback(ended.set):
            ended.set()
        responses = _Closable(self._responses(first))
        self._outgoing.put(responses)
        ended.wait()
        responses.close()

    def _responses(self, first: Part) -> Generator[bytes, None, None]:
        parts = iter([first])

        def following() -> Part:
            return next(parts, None) or self._following()

        def open_visit(offer: Head) -> AbstractContextManager[Visit | None]:
            return self._tools.visits.open(offer, self._stream)

        partner = Partner(self._tools.intake, following, self._is_from, open_visit)
        try:
            yield from partner.responses()
            yield END
        except MalformedError as error:
            self._is_nonsense(error)
        except grpc.RpcError as error:
            log.debug("an exchange with %s broke: %s", self._peer, error.code().name)
        finally:
            self._outgoing.end()

    def _following(self) -> Part:
        part, self._first = self._first or next(self._stream, None), None
        if part is None:
            raise MalformedError("the stream ended too early; end it with a trailer")
        self._tools.intake.handler.bytes_in(len(part))
        return parse_part(part, pb.ExchangeRequest)

    def _is_from(self, sender: PeerId) -> None:
        if sender != self._peer:
            raise MalformedError(f"sender = {sender[:64]!r}: not whose call this is")

    def _is_nonsense(self, error: MalformedError) -> None:
        text = f"{self._peer} sends nonsense to be collected: {error}"
        self._tools.intake.handler.denied(Denial.MALFORMED, text)
        self._stream.cancel()
