"""Streams of peers that can only dial out: who may open one, and what becomes of it.

That messages and exchanges go over them as over a port is shown where these are tested.
"""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest.mock import Mock

import grpc
import pytest
import torch

from peer.algorithms.core import Verdict
from peer.transport import collectors as collectors_module
from peer.transport.collecting import Collecting
from peer.transport.collectors import KEPT, BrokenError, Collected, CollectedWay, Collectors
from peer.transport.visits import Visits
from relayswarm.net.gate import Denial
from relayswarm.net.security import Security
from relayswarm.peer.v1 import peer_pb2 as pb
from tests.peer.transport.conftest import LIFE, PATIENCE_S


@pytest.fixture
def way() -> str:
    return "collected"


class Stream:
    """Opened by plain generated code."""

    def __init__(self, stub: Any, **collector: Any) -> None:
        self._queue: queue.SimpleQueue[pb.CollectRequest | None] = queue.SimpleQueue()
        named = {"run_id": "run", "peer_id": "peer", "incarnation": LIFE} | collector
        self.send(pb.CollectRequest(collector=pb.Collector(**named)))
        self.call = stub.Collect(iter(self._queue.get, None), timeout=PATIENCE_S)

    def send(self, request: pb.CollectRequest | None) -> None:
        self._queue.put(request)

    def message(self) -> pb.RelayUnaryRequest:
        """A small one: it comes whole."""
        return pb.RelayUnaryRequest.FromString(next(self.call).whole)

    def error(self) -> tuple[grpc.StatusCode, str]:
        with pytest.raises(grpc.RpcError) as caught:
            list(self.call)
        self.send(None)
        return caught.value.code(), caught.value.details() or ""


class Sender:
    """With one neighbour that can only dial out, and that nobody plays yet."""

    def __init__(self, tools: Any, elements: int = 1000) -> None:
        self.tools, self.contract = tools, tools.contract(elements)
        self.handler, self.reports, self.collectors = tools.Handler(), tools.Reports(), Collectors()
        self.server = tools.server(self.handler, self.contract, collectors=self.collectors)
        self.collectors.expect({"peer": LIFE})
        self.outbox = tools.outbox(self.reports, self.contract, collectors=self.collectors)
        self.outbox.set_addresses({"peer": ""})
        self.stub = tools.stub(self.server.address)

    def open(self, **collector: Any) -> Stream:
        return Stream(self.stub, **collector)

    def park(self, **collector: Any) -> Stream:
        """Open a stream, and wait until it is the one that waits."""
        collectors = self.collectors
        with collectors._changed:
            before = list(collectors._waiting.get("peer", []))
        stream = self.open(**collector)
        with collectors._changed:
            assert collectors._changed.wait_for(
                lambda: collectors._waiting.get("peer", []) not in ([], before), PATIENCE_S
            )
        return stream

    def post(self, step: int = 1) -> Any:
        head = self.tools.head(step=step)
        self.outbox.send("peer", head, self.tools.Outgoing(torch.ones(self.contract.elements)))
        return head


@pytest.fixture
def sender(tools: Any) -> Sender:
    return Sender(tools)


@pytest.fixture
def sender_of_large(tools: Any) -> Sender:
    return Sender(tools, 50_000_000)


ACCEPTED = pb.CollectRequest(answer=pb.RelayResponse(verdict=pb.VERDICT_ACCEPTED))


def test_a_foreign_collector_is_served(sender: Sender) -> None:
    stream = sender.open()
    head = sender.post()
    message = stream.message()
    assert (message.header.step, message.header.sender) == (1, "sender")
    assert message.data == torch.ones(1000).numpy().tobytes()
    assert message.HasField("trailer")
    assert not sender.reports.of("sent"), "before it is answered"
    stream.send(ACCEPTED)
    assert sender.reports.wait("sent") == [("peer", head, Verdict.ACCEPTED)]
    assert list(stream.call) == []
    stream.send(None)


@pytest.mark.parametrize(
    ("collector", "denial", "words"),
    [
        ({"run_id": "another"}, Denial.RUN, "this peer trains 'run'"),
        ({"peer_id": "stranger"}, Denial.STRANGER, "no neighbour that can only dial out"),
        ({"incarnation": LIFE - 1}, Denial.STRANGER, "in this life no neighbour"),
        ({"incarnation": LIFE + 1}, Denial.STRANGER, "try again once it has yours"),
        ({"peer_id": "x" * 5000}, Denial.STRANGER, "x" * 64 + "'"),
    ],
)
def test_whoever_is_not_expected_gets_nothing(
    sender: Sender, collector: dict[str, Any], denial: Denial, words: str
) -> None:
    code, text = sender.open(**collector).error()
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert words in text
    assert len(text) < 500
    assert sender.handler.of("denied")[0][0] is denial


@pytest.mark.parametrize(
    "first",
    [
        pb.CollectRequest(),
        pb.CollectRequest(data=b"x"),
        ACCEPTED,
        pb.CollectRequest(collector=pb.Collector(peer_id="peer"), data=b"x"),
    ],
    ids=["empty", "a chunk", "an answer", "two things at once"],
)
def test_nonsense_is_refused(sender: Sender, first: pb.CollectRequest) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        list(sender.stub.Collect(iter([first]), timeout=PATIENCE_S))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert sender.handler.of("denied")[0][0] is Denial.MALFORMED


def test_of_two_streams_the_later_takes_the_place_of_the_earlier(sender: Sender) -> None:
    first = sender.park()
    second = sender.park()
    assert first.error()[0] is grpc.StatusCode.ABORTED
    sender.post()
    assert second.message().header.step == 1
    second.call.cancel()
    second.send(None)


def test_many_streams_hold_one_thread(sender: Sender) -> None:
    streams = [sender.park() for _ in range(200)]
    for stream in streams[:-1]:
        assert stream.error()[0] is grpc.StatusCode.ABORTED
    sender.post()
    assert streams[-1].message().header.step == 1
    streams[-1].call.cancel()


def test_an_answer_that_is_none_is_as_if_the_stream_broke(sender: Sender) -> None:
    stream = sender.open()
    head = sender.post()
    stream.send(pb.CollectRequest(data=b"x"))
    assert sender.reports.wait("retried") == [("peer", "UNAVAILABLE")]
    stream.send(None)
    again = sender.open()
    assert again.message().header.attempt > 0
    again.send(ACCEPTED)
    assert sender.reports.wait("sent") == [("peer", head, Verdict.ACCEPTED)]
    again.send(None)


def test_a_stream_that_breaks_is_an_outage_until_another_is_opened(sender: Sender) -> None:
    sender.open().call.cancel()
    head = sender.post()
    assert sender.reports.wait("unreachable") == [("peer",)]
    stream = sender.open()
    next(stream.call)
    stream.send(ACCEPTED)
    assert sender.reports.wait("sent") == [("peer", head, Verdict.ACCEPTED)]
    stream.send(None)


def test_a_stream_that_stays_carries_one_message_after_the_other(sender: Sender) -> None:
    """To open another one takes longer than a small message."""
    stream = sender.open(stays=True)
    for step in range(1, 20):
        head = sender.post(step)
        assert stream.message().header.step == step
        stream.send(ACCEPTED)
        assert sender.reports.wait("sent", step)[-1] == ("peer", head, Verdict.ACCEPTED)
    stream.send(None)


def test_what_is_left_of_a_refused_message_is_not_sent(sender_of_large: Sender) -> None:
    sender = sender_of_large
    stream = sender.open(stays=True)
    sender.post(1)
    assert next(stream.call).header.step == 1
    stream.send(pb.CollectRequest(answer=pb.RelayResponse(verdict=pb.VERDICT_STALE_STEP)))
    sender.reports.wait("sent")
    sender.post(2)
    rest = itertools.takewhile(lambda part: not part.HasField("header"), stream.call)
    assert sum(1 for _ in rest) < 5, "what had been on its way"
    stream.call.cancel()


def test_of_streams_that_stay_few_wait(sender: Sender) -> None:
    streams = [sender.park(stays=True) for _ in range(KEPT + 3)]
    for stream in streams[:3]:
        assert stream.error()[0] is grpc.StatusCode.ABORTED
    sender.post()
    assert streams[-1].message().header.step == 1
    more = sender.park(stays=True)
    streams[-1].send(ACCEPTED)  # there are enough without this one now
    sender.reports.wait("sent")
    assert list(streams[-1].call) == []
    for stream in (more, *streams[3:-1]):
        stream.call.cancel()


def test_a_call_that_is_given_up_tells_nothing_of_the_neighbour() -> None:
    """Else a newer message, on its way in place of an older one, would pass for an outage. The
    requests of a stream that was cut can end as those of one that was left by the neighbour."""
    collectors, cut = Collectors(), threading.Event()
    context = Mock(grpc.ServicerContext, cancel=cut.set)

    def requests() -> Iterator[bytes]:
        cut.wait(PATIENCE_S)
        yield from ()

    collectors.expect({"peer": LIFE})
    collector = pb.Collector(peer_id="peer", incarnation=LIFE)
    stream = collectors.open(collector, requests(), context)
    assert stream is not None
    call = CollectedWay(collectors, "peer").send(iter([b"header"]))
    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(call.result)
        assert next(stream.parts()) == b"header"
        call.cancel()
        with pytest.raises(BrokenError) as caught:
            result.result(PATIENCE_S)
    assert caught.value.code() is grpc.StatusCode.CANCELLED


def test_a_stream_is_cancelled_before_its_thread_hears_of_it() -> None:
    """The thread would end it in order, which the neighbour takes for nonsense in mid-message."""
    could_begin = []
    collector = pb.Collector(peer_id="peer", incarnation=LIFE)
    stream = Collected(collector, iter(()), lambda: could_begin.append(stream.begin(iter(()))))
    stream.cut()
    assert could_begin == [True]
    assert not stream.begin(iter(())), "it is over"


def test_a_stream_that_broke_while_it_sent_has_not_come_to_its_end() -> None:
    """Else the exchange on it would be over as if nothing more were to come, without an outage."""
    collectors, over = Collectors(), []
    context = Mock(grpc.ServicerContext)
    context.add_callback.side_effect = lambda callback: over.append(callback) or True

    def offer() -> Iterator[bytes]:
        yield b"header"
        over[0]()  # says gRPC, before anybody has read that the stream is cut off
        yield b"chunk"

    def requests() -> Iterator[bytes]:
        assert list(stream.parts()) == [b"header"]
        raise RuntimeError("the neighbour has gone")
        yield b""

    collectors.expect({"peer": LIFE})
    stream: Any = collectors.open(
        pb.Collector(peer_id="peer", incarnation=LIFE), requests(), context
    )
    with pytest.raises(BrokenError) as caught:
        next(CollectedWay(collectors, "peer").exchange(offer()))
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_who_waits_for_a_stream_hears_that_another_one_broke(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is not waited for as long as for a first one."""
    monkeypatch.setattr(collectors_module, "FIRST_S", PATIENCE_S)
    monkeypatch.setattr(collectors_module, "LOST_S", 0.0)
    collectors, waits = Collectors(), threading.Event()
    collectors.expect({"peer": LIFE})

    def is_wanted() -> bool:
        waits.set()  # with the lock, which is only released to wait
        return True

    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(collectors.wait, "peer", is_wanted)
        assert waits.wait(PATIENCE_S)
        began = time.monotonic()
        collectors.lost("peer")
        with pytest.raises(BrokenError):
            result.result(PATIENCE_S)
    assert time.monotonic() - began < PATIENCE_S / 2


def test_who_is_no_neighbour_any_more_is_not_served(sender: Sender) -> None:
    stream = sender.open()
    sender.post()
    next(stream.call)  # a call is let end
    waiting = sender.open()
    sender.collectors.expect({})
    came_too_late = grpc.StatusCode.FAILED_PRECONDITION
    assert waiting.error()[0] in (grpc.StatusCode.ABORTED, came_too_late)
    assert sender.open().error()[0] is grpc.StatusCode.FAILED_PRECONDITION
    stream.send(ACCEPTED)
    assert sender.reports.wait("sent")
    stream.send(None)


def test_after_the_end_no_stream_is_kept(sender: Sender) -> None:
    waiting = sender.open()
    sender.post()
    next(waiting.call)
    sender.outbox.close(0.0)
    assert waiting.error()[0] in (grpc.StatusCode.CANCELLED, grpc.StatusCode.ABORTED)
    assert sender.open().error()[0] is grpc.StatusCode.FAILED_PRECONDITION


def test_nobody_collects_what_is_anothers(
    tools: Any, certificates: Callable[..., Security]
) -> None:
    """With certificates a stream is that of the peer whose certificate it is."""
    contract, collectors, handler = tools.contract(), Collectors(), tools.Handler()
    server = tools.server(handler, contract, collectors=collectors, security=certificates("peer-0"))
    collectors.expect({"peer-1": LIFE})
    stub = tools.stub(server.address, certificates("peer-2", name="peer-0"))
    code, text = Stream(stub, peer_id="peer-1").error()
    assert code is grpc.StatusCode.PERMISSION_DENIED
    assert "the certificate is that of peer-2" in text
    assert handler.of("denied")[0][0] is Denial.IDENTITY


# --- what a collector is sent ---------------------------------------------------------------------


class ForeignNeighbour:
    """Plain generated code that is called by a collector, and sends `parts`."""

    def __init__(self, tools: Any) -> None:
        self.parts: list[pb.CollectResponse] = []
        self.answers: queue.SimpleQueue[pb.CollectRequest] = queue.SimpleQueue()
        self.hellos: queue.SimpleQueue[pb.Collector] = queue.SimpleQueue()
        handler = grpc.stream_stream_rpc_method_handler(
            self._collect, pb.CollectRequest.FromString, pb.CollectResponse.SerializeToString
        )
        self.server = tools.grpc_server("relayswarm.peer.v1.PeerService", {"Collect": handler})

    def _collect(
        self, requests: Iterator[pb.CollectRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.CollectResponse]:
        self.hellos.put(next(requests).collector)
        parts, self.parts = self.parts, []
        if not parts:
            context.abort(grpc.StatusCode.ABORTED, "nothing")
        yield from parts
        for answer in requests:
            self.answers.put(answer)


@pytest.fixture
def foreign(tools: Any) -> ForeignNeighbour:
    return ForeignNeighbour(tools)


@pytest.mark.parametrize("fault", ["sender", "chunk", "reply", "twice", "whole", "not alone"])
def test_nonsense_is_not_taken_and_the_next_message_is(
    tools: Any, foreign: ForeignNeighbour, fault: str
) -> None:
    contract, handler = tools.contract(), tools.Handler()
    head = tools.head()
    whole = tools.unary(tools.header(head, contract), torch.ones(1000))
    good = [
        pb.CollectResponse(header=whole.header),
        pb.CollectResponse(data=whole.data),
        pb.CollectResponse(trailer=whole.trailer),
    ]
    other = pb.CollectResponse()
    other.CopyFrom(good[0])
    if fault == "reply":
        other.header.kind = pb.KIND_REPLY
    else:
        other.header.sender = "somebody"
    bad = {
        "sender": [other, *good[1:]],
        "chunk": [good[1]],
        "reply": [other, *good[1:]],
        "twice": [good[0], good[0]],
        "whole": [pb.CollectResponse(whole=whole.trailer.SerializeToString())],
        "not alone": [pb.CollectResponse(whole=whole.SerializeToString(), offset=7)],
    }[fault]
    foreign.parts = bad
    collecting = Collecting("peer", handler, contract, tools.Reports(), Visits())
    tools.callback(collecting.stop)
    collecting.set_neighbours({"sender": foreign.server}, LIFE)
    hello = foreign.hellos.get(timeout=PATIENCE_S)
    assert hello == pb.Collector(run_id="run", peer_id="peer", incarnation=LIFE, stays=True)
    foreign.hellos.get(timeout=PATIENCE_S)  # a stream is opened in the place of the other
    assert not handler.of("received")
    ((denial, text),) = handler.wait("denied")
    assert denial is Denial.MALFORMED
    assert "sender sends nonsense" in text
    foreign.parts = good
    (got, (vector,)) = handler.wait("received")[0]
    assert got == head
    assert torch.equal(vector, torch.ones(1000))
    answer = foreign.answers.get(timeout=PATIENCE_S).answer
    assert answer.verdict == pb.VERDICT_ACCEPTED
