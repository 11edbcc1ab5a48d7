"""Neighbours that can only dial out: the streams that they opened here, and calls on these.

A stream waits until this peer has something for who opened it; then it carries a call, in which
this peer speaks first. After a message it waits again, if who opened it allows that: to open
another one takes longer than a small message. Each stream holds a handler's thread, so few of a
neighbour's wait, and others are there only while calls are under way, of which this peer makes at
most two: a message and an exchange.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping

import grpc

from peer.algorithms.core import PeerId
from peer.transport.link import NoLinkError
from peer.transport.wire import Chunk, MalformedError, parse_part
from relayswarm.peer.v1 import peer_pb2 as pb

MOST = 256  # neighbours
STREAMS = 3 * MOST
"""Of all of them, at a time."""
KEPT = 2  # that wait, of a neighbour whose streams stay; of another one only the latest

FIRST_S = 5.0  # for a neighbour to open its first stream, or the next: as long as connecting takes
LOST_S = 1.0  # for another one, after one broke


END = pb.CollectRequest(ended=True).SerializeToString()


class BrokenError(grpc.RpcError):
    """A call in reverse did not come to its end."""

    def __init__(self, code: grpc.StatusCode) -> None:
        super().__init__(f"a collected call ended: {code.name}")
        self._code = code

    def code(self) -> grpc.StatusCode:
        """As of a call that this peer made itself."""
        return self._code


class Collected:
    """One stream. Its handler's thread sends `parts`; `responses` are for who makes the call."""

    def __init__(
        self, collector: pb.Collector, requests: Iterator[bytes], cancel: Callable[[], object]
    ) -> None:
        self.incarnation, self.stays = collector.incarnation, collector.stays
        self._requests, self._cancel = requests, cancel
        self._changed = threading.Condition()
        self._parts: Iterator[bytes] | None = None  # of the call that it carries
        self._over = False  # nothing is to be sent any more
        self._is_complete = False  # all has been sent
        self.is_used = False  # a call has begun, sooner or later

    def parts(self) -> Iterator[bytes]:
        """Wait for a call, send what it says, and so on until the end."""
        while (parts := self._next_call()) is not None:
            for part in parts:
                if self._over or self._parts is not parts:  # its answer is in
                    break
                yield part
            else:
                if self._parts is parts:
                    self._is_complete = True
                    return

    def _next_call(self) -> Iterator[bytes] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._parts is not None or self._over)
            return None if self._over else self._parts

    def begin(self, parts: Iterator[bytes]) -> bool:
        """Carry this call; False if the stream has ended."""
        with self._changed:
            if not self._over:
                self._parts, self.is_used = parts, True
                self._changed.notify_all()
            return not self._over

    def free(self) -> bool:
        """The call is over: be ready for another one; False if the stream has ended."""
        with self._changed:
            if not self._over:
                self._parts = None
            return not self._over

    def response(self) -> bytes | None:
        """The next that comes from the collector; None: no more. Raises BrokenError."""
        try:
            response = next(self._requests, None)
        except Exception as error:  # gRPC has no class of its own for a call that was cut off
            if self._is_complete:  # this peer has ended it
                return None
            raise BrokenError(grpc.StatusCode.UNAVAILABLE) from error
        if response is None and not self._is_complete:
            raise BrokenError(grpc.StatusCode.UNAVAILABLE)
        return None if response == END else response

    def end(self) -> None:
        """Send no more."""
        with self._changed:
            self._over = True
            self._changed.notify_all()

    def cut(self) -> None:
        """Break it off, wherever it is."""
        self._cancel()  # first: the thread that serves it would end it in order
        self.end()


class Collectors:
    """All of one peer's. Thread-safe."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._lives: dict[PeerId, int] = {}
        self._waiting: dict[PeerId, list[Collected]] = {}
        self._given_up_at: dict[PeerId, float] = {}  # monotonic seconds, unless a stream waits
        self._streams = 0
        self._closed = False

    def expect(self, lives: Mapping[PeerId, int]) -> None:
        """From now on these neighbours, in these lives, can only dial out, and nobody else."""
        with self._changed:
            changed = {p for p, life in lives.items() if self._lives.get(p) != life}
            gone = self._lives.keys() - lives.keys()
            self._lives = dict(lives)
            ended = [stream for p in changed | gone for stream in self._waiting.pop(p, [])]
            for peer in gone:
                del self._given_up_at[peer]
            self._given_up_at |= dict.fromkeys(changed, time.monotonic() + FIRST_S)
            self._changed.notify_all()
        for stream in ended:
            stream.end()

    def open(
        self, collector: pb.Collector, requests: Iterator[bytes], context: grpc.ServicerContext
    ) -> Collected | None:
        """A neighbour opens a stream, which waits, in place of its last one if there are enough;
        None: it is none, or there are too many."""
        peer = collector.peer_id
        stream = Collected(collector, requests, context.cancel)
        with self._changed:
            if not self._is_expected(peer, stream) or self._streams >= STREAMS:
                return None
            self._streams += 1
            waiting = self._waiting.setdefault(peer, [])
            ended = waiting.pop(0) if len(waiting) == (KEPT if stream.stays else 1) else None
            waiting.append(stream)
            self._changed.notify_all()
        if ended is not None:
            ended.end()
        if not context.add_callback(lambda: self._ended(peer, stream)):
            self._ended(peer, stream)
        return stream

    def _is_expected(self, peer: PeerId, stream: Collected) -> bool:
        return not self._closed and self._lives.get(peer) == stream.incarnation

    def give_back(self, peer: PeerId, stream: Collected) -> None:
        """A message was answered: the stream waits again, if it may."""
        with self._changed:
            waiting = self._waiting.get(peer, [])
            kept = stream.stays and len(waiting) < KEPT and self._is_expected(peer, stream)
            if kept and stream.free():
                self._waiting[peer] = [*waiting, stream]
                self._changed.notify_all()
                return
        stream.end()

    def _ended(self, peer: PeerId, stream: Collected) -> None:
        """gRPC says that the call is over."""
        stream.end()
        with self._changed:
            self._streams -= 1
            waiting = self._waiting.get(peer, [])
            if stream in waiting:
                waiting.remove(stream)
                self._lose(peer)

    def _lose(self, peer: PeerId) -> None:
        if peer in self._given_up_at:
            self._given_up_at[peer] = time.monotonic() + LOST_S
            self._changed.notify_all()

    def lost(self, peer: PeerId) -> bool:
        """A call to that neighbour broke. Whether the neighbour is there all the same: it may have
        broken it off itself, as who gives up an exchange does, and another stream of it waits."""
        with self._changed:
            self._lose(peer)
            return bool(self._waiting.get(peer))

    def wait(self, peer: PeerId, is_wanted: Callable[[], bool] = lambda: True) -> None:
        """Wait for a stream of that neighbour. Raises BrokenError if it does not open one, or it is
        not wanted any more (say so with `nudge`); NoLinkError after `close`."""
        with self._changed:
            self._wait(peer, is_wanted)

    def take(
        self, peer: PeerId, parts: Iterator[bytes], is_wanted: Callable[[], bool]
    ) -> Collected:
        """Begin a call on a stream of that neighbour. Raises as `wait` does."""
        with self._changed:
            while True:
                self._wait(peer, is_wanted)
                stream = self._waiting[peer].pop()
                self._given_up_at[peer] = time.monotonic() + FIRST_S
                if stream.begin(parts):
                    return stream

    def _wait(self, peer: PeerId, is_wanted: Callable[[], bool]) -> None:
        while True:
            if self._closed:
                raise NoLinkError
            if not is_wanted():
                raise BrokenError(grpc.StatusCode.CANCELLED)
            if self._waiting.get(peer):
                return
            left_s = self._given_up_at.get(peer, 0.0) - time.monotonic()
            if left_s <= 0:
                raise BrokenError(grpc.StatusCode.UNAVAILABLE)
            self._changed.wait(left_s)

    def nudge(self) -> None:
        """Let those who wait look whether that is still wanted."""
        with self._changed:
            self._changed.notify_all()

    def close(self) -> None:
        """End what waits; take no more."""
        with self._changed:
            self._closed = True
            ended = [stream for waiting in self._waiting.values() for stream in waiting]
            self._waiting = {}
            self._changed.notify_all()
        for stream in ended:
            stream.end()


class ReverseCall:
    """A call to a neighbour that can only dial out: begins once something is read from it."""

    def __init__(self, collectors: Collectors, peer: PeerId, parts: Iterator[bytes]) -> None:
        self._collectors, self._peer, self._parts = collectors, peer, parts
        self._guard = threading.Lock()
        self._stream: Collected | None = None
        self._cancelled = False
        self._answered = threading.Event()

    def __iter__(self) -> ReverseCall:
        return self

    def __next__(self) -> bytes:
        """The next part that comes. Raises BrokenError, NoLinkError."""
        stream = self._stream or self._begin(self._parts)
        try:
            response = stream.response()
        except BrokenError:
            if self._cancelled or self._collectors.lost(self._peer):
                raise BrokenError(grpc.StatusCode.CANCELLED) from None
            raise
        if response is None and self._cancelled:  # it ended for that, and tells nothing of the peer
            raise BrokenError(grpc.StatusCode.CANCELLED)
        if response is None:
            raise StopIteration
        return response

    def result(self) -> pb.RelayResponse:
        """Send all parts, or as many as are wanted, and wait for the answer to them. Raises
        BrokenError, NoLinkError."""
        self._parts = self._and_stay(self._parts)
        answer: pb.RelayResponse | None = None
        try:
            response = next(self, None)
            part = None if response is None else parse_part(response, pb.ExchangeResponse)
            if not isinstance(part, Chunk | None) and part.HasField("answer"):
                answer = part.answer
        except MalformedError:
            pass
        finally:
            self._leave(well=answer is not None)
        if answer is None:
            raise BrokenError(grpc.StatusCode.UNAVAILABLE)
        return answer

    def _leave(self, *, well: bool) -> None:
        """The stream is another call's from now on: this one's `cancel` does not cut it."""
        with self._guard:
            stream, self._stream = self._stream, None
        if stream is not None and well:
            self._collectors.give_back(self._peer, stream)
        elif stream is not None:
            stream.end()
        self._answered.set()

    def cancel(self) -> None:
        """Break it off, from any thread."""
        with self._guard:
            self._cancelled = True
            stream = self._stream
        if stream is not None:
            stream.cut()
        self._answered.set()
        self._collectors.nudge()

    def _begin(self, parts: Iterator[bytes]) -> Collected:
        stream = self._collectors.take(self._peer, parts, lambda: not self._cancelled)
        with self._guard:
            self._stream = stream
            cancelled = self._cancelled
        if cancelled:
            stream.cut()
        return stream

    def _and_stay(self, parts: Iterator[bytes]) -> Iterator[bytes]:
        """The stream is to be there until the answer is in."""
        yield from parts
        self._answered.wait()


class CollectedWay:
    """The way to a neighbour that can only dial out; `close` cuts off what is under way."""

    address = ""
    send_whole = None

    def __init__(self, collectors: Collectors, peer: PeerId) -> None:
        self._collectors, self._peer = collectors, peer
        self._guard = threading.Lock()
        self._calls: list[ReverseCall] = []  # the last ones: one of each kind can be under way
        self._closed = False

    def send(self, parts: Iterator[bytes]) -> ReverseCall:
        """A message."""
        return self._call(parts)

    def exchange(self, parts: Iterator[bytes]) -> ReverseCall:
        """An exchange."""
        return self._call(parts)

    def probe(self, timeout_s: float) -> None:  # noqa: ARG002
        """Whether the neighbour is there. Raises BrokenError if it is not."""
        self._collectors.wait(self._peer)

    def close(self) -> None:
        """Cut off what is under way."""
        with self._guard:
            self._closed = True
            calls, self._calls = self._calls, []
        for call in calls:
            call.cancel()

    def _call(self, parts: Iterator[bytes]) -> ReverseCall:
        call = ReverseCall(self._collectors, self._peer, parts)
        with self._guard:
            if self._closed:
                raise NoLinkError
            self._calls = [*self._calls[-3:], call]
        return call
