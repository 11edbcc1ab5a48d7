"""Callers that stall, trickle or come in crowds: cut off, turned away, and soon forgotten."""

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2

from relayswarm.net.bounds import SLOWEST_BYTES_PER_S, Pace
from relayswarm.net.gate import Denial
from relayswarm.net.security import PLAIN
from relayswarm.net.server import CALLERS, Server

PATIENCE_S = 20.0
STALL_S = 0.3
THREADS = 12


class Serving:
    """A server of four kinds of calls, and what it has turned away."""

    def __init__(self, stack: ExitStack, stall_s: float = STALL_S) -> None:
        self.denied: list[Denial] = []
        self.news = threading.Condition()
        self.may_end = threading.Event()
        self.server = Server(
            "test.Service",
            lambda server: server.add_generic_rpc_handlers((self._handlers(),)),
            "127.0.0.1:0",
            PLAIN,
            self._deny,
            threads=THREADS,
            largest_message=1 << 20,
            stall_s=stall_s,
        )
        self.server.start()
        stack.callback(self.server.stop, 0.0)
        stack.callback(self.may_end.set)
        self._stack = stack

    def _handlers(self) -> grpc.GenericRpcHandler:
        methods = {
            "Unary": grpc.unary_unary_rpc_method_handler(lambda request, _: request),
            "Collect": grpc.stream_unary_rpc_method_handler(lambda it, _: b"".join(it)),
            "Pour": grpc.unary_stream_rpc_method_handler(lambda request, _: iter([request] * 64)),
            "Parse": grpc.unary_unary_rpc_method_handler(
                lambda request, _: request.service.encode(),
                request_deserializer=health_pb2.HealthCheckRequest.FromString,
            ),
            "Think": grpc.unary_unary_rpc_method_handler(self._think),
        }
        return grpc.method_handlers_generic_handler("test.Service", methods)

    def _think(self, request: bytes, context: Any) -> bytes:  # noqa: ARG002
        self.may_end.wait(PATIENCE_S)
        return request

    def _deny(self, denial: Denial, text: str) -> None:  # noqa: ARG002
        with self.news:
            self.denied.append(denial)
            self.news.notify_all()

    def await_denials(self, count: int) -> None:
        with self.news:
            assert self.news.wait_for(lambda: len(self.denied) >= count, PATIENCE_S), self.denied

    def line(self) -> grpc.Channel:
        """A connection of its own."""
        options = [("grpc.use_local_subchannel_pool", 1)]
        return self._stack.enter_context(grpc.insecure_channel(self.server.address, options))

    def half_open(self, method: str, channel: grpc.Channel, *requests: bytes) -> Any:
        """A call that sends these requests, and then neither more nor its end."""

        def feed() -> Iterator[bytes]:
            yield from requests
            self.may_end.wait(PATIENCE_S)

        return channel.stream_unary(f"/test.Service/{method}").future(feed())


@pytest.fixture
def serving() -> Iterator[Serving]:
    with ExitStack() as stack:
        yield Serving(stack)


def unary(channel: grpc.Channel, method: str = "Unary", request: bytes = b"x") -> bytes:
    return channel.unary_unary(f"/test.Service/{method}")(request, timeout=PATIENCE_S)


@pytest.mark.parametrize("method", ["Unary", "Collect", "Pour"])
def test_a_call_that_stalls_is_cut_off(serving: Serving, method: str) -> None:
    """Also one that never gets to a handler of ours: a unary call without its request."""
    call = serving.half_open(method, serving.line(), *([b"x"] if method == "Collect" else []))
    with pytest.raises((grpc.RpcError, grpc.FutureCancelledError)):
        call.result(PATIENCE_S)
    assert serving.denied == [Denial.STALLED]


def test_who_does_not_read_is_cut_off(serving: Serving) -> None:
    call = serving.line().unary_stream("/test.Service/Pour")(b"x" * (1 << 19))
    serving.await_denials(1)
    assert serving.denied == [Denial.STALLED]
    with pytest.raises(grpc.RpcError):
        list(call)


def test_a_handler_takes_the_time_it_needs(serving: Serving) -> None:
    thinking = serving.line().unary_unary("/test.Service/Think").future(b"x")
    stalled = serving.half_open("Collect", serving.line())
    with pytest.raises((grpc.RpcError, grpc.FutureCancelledError)):
        stalled.result(PATIENCE_S)
    assert not thinking.done()
    serving.may_end.set()
    assert thinking.result(PATIENCE_S) == b"x"


def test_a_crowd_of_half_open_calls_leaves_room_for_others(serving: Serving) -> None:
    crowd, honest = serving.line(), serving.line()
    calls = [serving.half_open("Collect", crowd) for _ in range(5 * THREADS)]
    serving.await_denials(1)
    assert unary(honest) == b"x"
    codes = {call.code() for call in calls}  # once they have ended
    assert codes == {grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.CANCELLED}
    assert serving.denied.count(Denial.BUSY) >= 5 * THREADS - 3 * THREADS // CALLERS
    assert unary(crowd) == b"x"  # and is then as welcome as before


def test_a_crowd_of_callers_leaves_room_for_others() -> None:
    """Also before any of its calls has stalled for long: who waits longest makes room."""
    with ExitStack() as stack:
        serving = Serving(stack, stall_s=PATIENCE_S)
        honest = serving.line()
        lines = [serving.line() for _ in range(10)]
        each = THREADS // CALLERS
        calls = [serving.half_open("Collect", line, b"x") for line in lines * each]
        serving.await_denials(len(calls) - THREADS)
        began = time.monotonic()
        assert unary(honest) == b"x"
        assert time.monotonic() - began < PATIENCE_S / 2
        assert set(serving.denied) == {Denial.BUSY}


def test_a_unary_call_without_a_request_is_malformed(serving: Serving) -> None:
    call = serving.line().stream_unary("/test.Service/Unary")
    with pytest.raises(grpc.RpcError) as refused:
        call(iter(()), timeout=PATIENCE_S)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert serving.denied == [Denial.MALFORMED]


def test_a_request_that_is_none_is_malformed_and_no_traceback(
    serving: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    line = serving.line()
    assert unary(line, "Parse", b"\x0a\x01x") == b"x"
    for method in ("/test.Service/Parse", "/grpc.health.v1.Health/Check"):
        with pytest.raises(grpc.RpcError) as refused:
            line.unary_unary(method)(b"\xff", timeout=PATIENCE_S)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert serving.denied == [Denial.MALFORMED] * 2
    assert not caplog.records


def test_a_call_to_no_method_is_counted(serving: Serving) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        unary(serving.line(), "Delete")
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert serving.denied == [Denial.METHOD]


# --- pace -----------------------------------------------------------------------------------------


def paced(moves: list[tuple[float, int]], stall_s: float = 10.0) -> float | None:
    """When a call is first late that waits so long for each of these sizes; None: never."""
    pace, now = Pace("caller", lambda: None, stall_s), 0.0
    for wait_s, count in moves:
        pace.wait(now)
        assert pace.deadline is not None
        if now + wait_s > pace.deadline:
            return pace.deadline
        now += wait_s
        pace.moved(count, now)
    return None


CHUNK = 1 << 20


@pytest.mark.parametrize(
    ("moves", "late_at"),
    [
        ([(9.9, CHUNK)] * 1000, None),  # slow, but it gets on: 100 kB/s
        ([(10.1, CHUNK)], 10.0),
        ([(5.0, 1)] * 1000, 10.0),  # trickles
        ([(5.0, CHUNK), *[(9.9, 1)] * 1000], 10.0 + CHUNK / SLOWEST_BYTES_PER_S),
        ([(0.1, 2000)] * 10_000, None),
    ],
)
def test_the_pace_that_is_asked(moves: list[tuple[float, int]], late_at: float | None) -> None:
    assert paced(moves) == (late_at and pytest.approx(late_at, rel=1e-3))
