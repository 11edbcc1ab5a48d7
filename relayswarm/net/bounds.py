"""What a caller may take up: so many calls at a time, and so much waiting for it.

A call holds a thread, and perhaps a buffer, while its handler waits for the caller: for the next
request, or for room to send. One that stalls or trickles is cut off, and both are free again. What
a slow but honest link needs is within the bounds. The time that a handler itself takes is its own.
However many callers there are, or one over however many connections, some threads stay free: when
too many calls wait, a new one takes the place of that which has waited longest.

gRPC waits for the one request of a unary call in a thread of the pool, before any of our code runs.
So here all handlers take streams, of which a unary call is one with one message. Requests are
parsed here too: what is none is refused and counted, where gRPC would write a traceback for each.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import grpc
from google.protobuf.message import DecodeError

from relayswarm.net.gate import Denial, OnDenied, certified_names

STALL_S = 20.0
"""After waiting for so long for one message, a call is cut off."""

SLOWEST_BYTES_PER_S = 16 * 1024
"""All waiting together may take `STALL_S`, and what its bytes take at this rate."""

_Handler = Any  # grpc.RpcMethodHandler: its attributes are not in its type


class Pace:
    """How a call gets on. Waiting begins and ends in its own thread, another one looks on."""

    def __init__(self, caller: str, cut: Callable[[], object], stall_s: float) -> None:
        self.caller = caller
        self.since = 0.0  # when the waiting began
        self.deadline: float | None = None  # while the caller is waited for
        self.is_late = False
        self._cut = cut
        self._stall_s = stall_s
        self._budget_s = stall_s
        self._is_free = False

    def wait(self, now: float) -> None:
        """From now on the caller is waited for."""
        self.since = now
        if not self._is_free:
            self.deadline = now + min(self._stall_s, self._budget_s)

    def free(self) -> None:
        """From now on the caller may take its time."""
        self._is_free, self.deadline = True, None

    def cut(self) -> None:
        """It has not got on."""
        self.is_late = True
        self._cut()

    def moved(self, count: int, now: float) -> None:
        """It has sent, or taken, so many bytes."""
        self.deadline = None
        self._budget_s += count / SLOWEST_BYTES_PER_S - (now - self.since)


class Incoming(Iterator[Any]):
    """The requests of a call, as they come."""

    def __init__(self, requests: Iterator[Any], pace: Pace) -> None:
        self._requests, self._pace = requests, pace

    def __next__(self) -> Any:
        """The next one, waited for no longer than the caller may keep a thread waiting."""
        return next(self._requests)

    def free(self) -> None:
        """Let the caller take its time from now on, as what it may take up is bounded otherwise."""
        self._pace.free()


class Bounds(grpc.ServerInterceptor):
    """Counts each caller's calls that wait, and watches over all in a thread of its own."""

    def __init__(
        self,
        on_denied: OnDenied,
        calls_per_caller: int,
        calls: int,
        stall_s: float = STALL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._on_denied, self._stall_s, self._clock = on_denied, stall_s, clock
        self._calls_per_caller = calls_per_caller  # that wait for it
        self._calls = calls  # that wait, of all callers
        self._handlers: dict[str, _Handler] = {}
        self._paces: set[Pace] = set()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._watch, name="bounds", daemon=True)

    def start(self) -> None:
        """Begin to cut off calls that stall."""
        self._thread.start()

    def stop(self) -> None:
        """Cut off no more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join()

    def intercept_service(
        self, continuation: Callable[[Any], _Handler | None], handler_call_details: Any
    ) -> _Handler | None:
        """gRPC asks for the handler of a call."""
        method = handler_call_details.method
        if method not in self._handlers:
            handler = continuation(handler_call_details)
            if handler is None:  # the method's name is the caller's, so nothing is kept
                self._on_denied(Denial.METHOD, "a call to a method that does not exist")
                return None
            self._handlers[method] = self._bounded(handler)
        return self._handlers[method]

    def _bounded(self, handler: _Handler) -> _Handler:
        def unary(requests: Iterator[Any], context: grpc.ServicerContext) -> Any:
            with self._call(context) as pace:
                incoming = self._incoming(requests, handler, context, pace)
                if handler.request_streaming:
                    return handler.stream_unary(incoming, context)
                return handler.unary_unary(self._only(incoming, context), context)

        def stream(requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
            with self._call(context) as pace:
                incoming = self._incoming(requests, handler, context, pace)
                if handler.request_streaming:
                    responses = handler.stream_stream(Incoming(incoming, pace), context)
                else:
                    responses = handler.unary_stream(self._only(incoming, context), context)
                yield from self._outgoing(responses, pace)

        serializer = handler.response_serializer
        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(stream, response_serializer=serializer)
        return grpc.stream_unary_rpc_method_handler(unary, response_serializer=serializer)

    def _incoming(
        self,
        requests: Iterator[bytes],
        handler: _Handler,
        context: grpc.ServicerContext,
        pace: Pace,
    ) -> Iterator[Any]:
        while True:
            pace.wait(self._clock())
            request = next(requests, None)
            pace.moved(len(request or b""), self._clock())
            if request is None and (pace.is_late or not context.is_active()):
                _abort(context, grpc.StatusCode.CANCELLED, "the call was cut off")
            if request is None:
                return
            yield self._parsed(request, handler, context)

    def _parsed(self, request: bytes, handler: _Handler, context: grpc.ServicerContext) -> Any:
        if handler.request_deserializer is None:
            return request
        try:
            return handler.request_deserializer(request)
        except DecodeError:
            self._refuse_malformed(context, "the request is no message of this method")

    def _only(self, requests: Iterator[Any], context: grpc.ServicerContext) -> Any:
        """The request of a unary call."""
        request = next(requests, None)
        if request is None:
            self._refuse_malformed(context, "the call has no request; send one")
        return request

    def _refuse_malformed(self, context: grpc.ServicerContext, text: str) -> NoReturn:
        self._on_denied(Denial.MALFORMED, text)
        _abort(context, grpc.StatusCode.INVALID_ARGUMENT, text)

    def _outgoing(self, responses: Iterator[Any], pace: Pace) -> Iterator[Any]:
        for response in responses:
            pace.wait(self._clock())
            yield response
            pace.moved(_size(response), self._clock())

    @contextmanager
    def _call(self, context: grpc.ServicerContext) -> Iterator[Pace]:
        pace = Pace(_caller(context), context.cancel, self._stall_s)
        with self._changed:
            waiting = [p for p in self._paces if p.deadline]
            own = sum(p.caller == pace.caller for p in waiting)
            allowed = own < self._calls_per_caller
            crowd = allowed and len(waiting) >= self._calls
            last = min(waiting, key=lambda p: p.since) if crowd else None
            if allowed:
                self._paces.discard(last or pace)
                pace.wait(self._clock())
                self._paces.add(pace)
        if last:
            self._on_denied(
                Denial.BUSY, "a call was cut off for another: of all it had waited longest"
            )
            last.cut()
        if not allowed:
            text = f"more than {self._calls_per_caller} calls at a time that wait for you; end some"
            self._on_denied(Denial.BUSY, text)
            _abort(context, grpc.StatusCode.RESOURCE_EXHAUSTED, text)
        try:
            yield pace
        finally:
            with self._changed:
                self._paces.discard(pace)

    def _watch(self) -> None:
        with self._changed:
            while not self._closed:
                now = self._clock()
                late = [p for p in self._paces if p.deadline is not None and p.deadline <= now]
                self._paces.difference_update(late)
                for pace in late:
                    self._on_denied(Denial.STALLED, "a call stalled, and was cut off")
                    pace.cut()
                self._changed.wait(self._stall_s / 4)


def _size(message: Any) -> int:
    """Bytes of an answer; of one that is still to be written, which is small, hardly any."""
    return len(message) if isinstance(message, bytes) else 0


def _caller(context: grpc.ServicerContext) -> str:
    """Whose calls count together: by certificate, or else by connection."""
    names = certified_names(context)
    return min(names) if names else context.peer()


def _abort(context: grpc.ServicerContext, code: grpc.StatusCode, text: str) -> NoReturn:
    context.abort(code, text)
    raise AssertionError("abort raises")
