"""Sending to one neighbour: tries again, newer messages before older ones, outages."""

import queue
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from peer.algorithms.core import Head, Verdict
from peer.codec.edges import Forecast
from peer.transport import sender as sender_module
from peer.transport.collectors import BrokenError
from peer.transport.letter import Letter
from peer.transport.sender import (
    BACKLOG,
    LONGEST_RETRY_S,
    RETRY_GROWTH_LIMIT,
    SHORTEST_RETRY_S,
    Sender,
    growth,
    retry_s,
)
from relayswarm.peer.v1 import peer_pb2 as pb
from tests.peer.transport.conftest import PATIENCE_S

LARGE = 600_000  # elements of float32: three chunks


@pytest.fixture(params=["dialled", "collected"])
def way(request: pytest.FixtureRequest) -> str:
    """All of this holds for peers with a port, and for those that can only dial out."""
    way: str = request.param
    return way


# --- trying again ---------------------------------------------------------------------------------


@pytest.mark.parametrize("passing", [Verdict.EPOCH_AHEAD, Verdict.BUSY])
@pytest.mark.parametrize("elements", [1000, LARGE])
def test_tries_again_while_the_receiver_is_not_ready(
    tools: Any, passing: Verdict, elements: int
) -> None:
    swarm = tools.Swarm(tools, elements)
    answers = iter([passing, passing, passing, Verdict.ACCEPTED])
    swarm.handler.judge = lambda _: next(answers)
    head, outgoing = swarm.send()
    assert swarm.reports.wait("sent") == [("peer", head, Verdict.ACCEPTED)]
    assert swarm.reports.of("retried") == [("peer", passing.name)] * 3
    ((_, vectors),) = swarm.handler.of("received")
    assert torch.equal(vectors[0], outgoing.vectors[0])


@given(st.integers(0, 10**9))
def test_waits_grow_but_not_for_ever(attempt: int) -> None:
    assert growth(attempt) == min(2 ** min(attempt, 64), RETRY_GROWTH_LIMIT)


@given(told_ms=st.integers(0, 2**32 - 1), attempt=st.integers(0, 10**9))
def test_a_receiver_has_nobody_try_again_without_a_pause(told_ms: int, attempt: int) -> None:
    """Also one of another release, or a hostile one, that leaves out when to."""
    response = pb.RelayResponse(verdict=pb.VERDICT_BUSY, retry_after_ms=told_ms)
    assert SHORTEST_RETRY_S <= retry_s(response, attempt) <= LONGEST_RETRY_S


def test_a_slot_that_is_stuck_does_not_hold_up_another(tools: Any) -> None:
    swarm = tools.Swarm(tools, trees=2)
    swarm.handler.judge = lambda head: Verdict.BUSY if head.tree == 0 else Verdict.ACCEPTED
    swarm.send(tree=0)
    swarm.reports.wait("retried")
    head, _ = swarm.send(tree=1)
    assert swarm.reports.wait("sent") == [("peer", head, Verdict.ACCEPTED)]


# --- rule R7: newer messages take the place of older ones -----------------------------------------


def test_one_more_than_the_backlog_drops_the_oldest(tools: Any) -> None:
    swarm = tools.Swarm(tools)
    ready = threading.Event()
    swarm.handler.judge = lambda _: Verdict.ACCEPTED if ready.is_set() else Verdict.EPOCH_AHEAD
    heads = [swarm.send(step)[0] for step in range(BACKLOG + 3)]
    dropped = sorted(swarm.reports.wait("sent", 3), key=lambda event: event[1].step)
    assert dropped == [("peer", head, None) for head in heads[:3]]
    ready.set()
    delivered = swarm.reports.wait("sent", BACKLOG + 3)[3:]
    assert delivered == [("peer", head, Verdict.ACCEPTED) for head in heads[3:]]
    assert [head for head, _ in swarm.handler.of("received")] == heads[3:]


def test_the_oldest_is_cut_off_even_while_it_streams(tools: Any) -> None:
    swarm = tools.Swarm(tools, LARGE)
    swarm.handler.keep = False
    gate = threading.Event()
    first, outgoing = swarm.send(0, gate)
    swarm.handler.wait("bytes_in", 2)
    rest = [swarm.send(step)[0] for step in range(1, BACKLOG + 1)]
    assert swarm.handler.wait("broken") == [(first,)]
    gate.set()
    assert swarm.reports.wait("sent")[0] == ("peer", first, None)
    assert outgoing.closed == 1
    answers = swarm.reports.wait("sent", BACKLOG + 1)[1:]
    assert answers == [("peer", head, Verdict.ACCEPTED) for head in rest]


@pytest.mark.parametrize("elements", [1000, LARGE])
def test_cancels_what_waits(tools: Any, elements: int) -> None:
    swarm = tools.Swarm(tools, elements)
    swarm.handler.judge = lambda _: Verdict.EPOCH_AHEAD
    head, outgoing = swarm.send()
    swarm.reports.wait("retried")
    swarm.outbox.cancel("peer", head)
    assert swarm.reports.wait("sent") == [("peer", head, None)]
    assert outgoing.closed == 1


def test_cancels_a_stream(tools: Any) -> None:
    swarm = tools.Swarm(tools, LARGE)
    gate = threading.Event()
    head, outgoing = swarm.send(gate=gate)
    swarm.handler.wait("bytes_in", 2)
    swarm.outbox.cancel("peer", head)
    assert swarm.handler.wait("broken") == [(head,)]
    gate.set()
    assert swarm.reports.wait("sent") == [("peer", head, None)]
    assert outgoing.closed == 1


@pytest.mark.parametrize("elements", [1000, LARGE])
def test_a_message_that_is_there_is_answered_even_if_it_is_cancelled(
    tools: Any, elements: int
) -> None:
    """Only its answer is late, as on a machine that is busy. Without it the next message would be
    written in another way than by a neighbour that heard it."""
    swarm, ready = tools.Swarm(tools, elements), threading.Event()

    def slow(_: Head) -> Verdict:
        assert ready.wait(PATIENCE_S)
        return Verdict.ACCEPTED

    swarm.handler.judge_content = slow
    head, _ = swarm.send()
    swarm.handler.wait("received")
    swarm.outbox.cancel("peer", head)
    ready.set()
    assert swarm.reports.wait("sent") == [("peer", head, Verdict.ACCEPTED)]
    assert not swarm.handler.of("broken")


def test_cancelling_what_is_answered_or_unknown_does_nothing(tools: Any) -> None:
    swarm = tools.Swarm(tools)
    head, _ = swarm.send()
    swarm.reports.wait("sent")
    swarm.outbox.cancel("peer", head)
    swarm.outbox.cancel("stranger", head)
    swarm.send(2)
    assert [v for _, _, v in swarm.reports.wait("sent", 2)] == [Verdict.ACCEPTED] * 2


# --- outages --------------------------------------------------------------------------------------


@pytest.mark.parametrize("elements", [1000, LARGE])
def test_an_outage_is_told_once_and_tries_go_on_until_it_ends(tools: Any, elements: int) -> None:
    swarm = tools.Swarm(tools, elements)
    for outage in (1, 2):
        swarm.kill()
        head, _ = swarm.send(outage)
        swarm.reports.wait("unreachable", outage)
        retries = len(swarm.reports.of("retried"))
        swarm.reports.wait("retried", retries + 2)
        assert swarm.reports.of("unreachable") == [("peer",)] * outage
        swarm.restart()
        assert swarm.reports.wait("sent", outage)[-1] == ("peer", head, Verdict.ACCEPTED)


def test_a_stream_that_breaks_is_sent_again(tools: Any) -> None:
    swarm = tools.Swarm(tools, LARGE)
    gate = threading.Event()
    head, outgoing = swarm.send(gate=gate)
    swarm.handler.wait("bytes_in", 2)
    swarm.kill()
    assert swarm.handler.wait("broken") == [(head,)]
    gate.set()
    swarm.restart()
    assert swarm.reports.wait("sent") == [("peer", head, Verdict.ACCEPTED)]
    ((_, vectors),) = swarm.handler.of("received")
    assert torch.equal(vectors[0], outgoing.vectors[0])


def test_an_end_is_noticed_without_anything_to_send(tools: Any) -> None:
    """Who waits for a neighbour's message has sent all he has."""
    swarm = tools.Swarm(tools)
    swarm.send()
    swarm.reports.wait("sent")
    swarm.kill()
    assert swarm.reports.wait("unreachable") == [("peer",)]
    swarm.restart()
    head, _ = swarm.send(2)
    assert swarm.reports.wait("sent", 2)[1] == ("peer", head, Verdict.ACCEPTED)


@pytest.mark.parametrize("way", ["dialled"], indirect=True)  # keepalive tells of the others
def test_a_peer_that_hangs_is_unreachable(tools: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender_module, "UNARY_TIMEOUT_S", 0.2)
    swarm = tools.Swarm(tools)
    awake = threading.Event()

    def hang(_: Head) -> Verdict:
        awake.wait(20)
        return Verdict.ACCEPTED

    swarm.handler.judge = hang
    head, _ = swarm.send()
    assert swarm.reports.wait("unreachable") == [("peer",)]
    awake.set()
    assert swarm.reports.wait("sent") == [("peer", head, Verdict.ACCEPTED)]


def test_who_has_left_is_not_down(tools: Any) -> None:
    """Else a swarm that heals itself would leave its coordinator's tree, long after a death, at the
    coordinator's next restart. Of the epoch before there may be more to send."""
    swarm = tools.Swarm(tools)
    swarm.send()
    swarm.reports.wait("sent")
    swarm.kill()
    swarm.reports.wait("unreachable")
    assert swarm.outbox.down == {"peer"}
    swarm.outbox.set_addresses({"another": "127.0.0.1:1"})
    assert not swarm.outbox.down
    head, outgoing = swarm.send(2)
    assert swarm.reports.of("sent")[1:] == [("peer", head, None)]
    assert outgoing.closed == 1
    assert not swarm.outbox.down
    assert swarm.reports.of("unreachable") == [("peer",)], "of which this is no second outage"


@pytest.mark.parametrize("elements", [1000, LARGE])
def test_follows_a_peer_that_moves(tools: Any, elements: int) -> None:
    swarm = tools.Swarm(tools, elements)
    swarm.kill()
    head, _ = swarm.send()
    swarm.reports.wait("retried")
    elsewhere = tools.server(swarm.handler, swarm.contract)
    swarm.outbox.set_addresses({"peer": elsewhere.address})
    assert swarm.reports.wait("sent") == [("peer", head, Verdict.ACCEPTED)]


@pytest.mark.parametrize("elements", [1000, LARGE])
def test_a_stream_follows_a_peer_that_moves(tools: Any, elements: int) -> None:
    """What is under way to the old address is cut off there and sent again to the new one."""
    swarm = tools.Swarm(tools, elements)
    old = swarm.handler
    stuck = threading.Event()
    old.judge = lambda _: Verdict.ACCEPTED if stuck.wait(20) else Verdict.BUSY
    head, _ = swarm.send()
    old.wait("admit")
    new = tools.Handler()
    swarm.outbox.set_addresses({"peer": tools.server(new, swarm.contract).address})
    assert swarm.reports.wait("sent") == [("peer", head, Verdict.ACCEPTED)]
    assert len(new.of("received")) == 1
    stuck.set()


class ProbedWay:
    """Probes of it fail, or succeed, as the test says for one after the other."""

    address, send_whole = "there", None

    def __init__(self) -> None:
        self.begun: queue.SimpleQueue[None] = queue.SimpleQueue()
        self.answers: queue.SimpleQueue[bool] = queue.SimpleQueue()

    def probe(self, timeout_s: float) -> None:  # noqa: ARG002
        self.begun.put(None)
        if not self.answers.get(timeout=PATIENCE_S):
            raise BrokenError(grpc.StatusCode.UNAVAILABLE)

    def close(self) -> None:
        self.answers.put(True)


@pytest.mark.parametrize("way", ["dialled"], indirect=True)
def test_an_outage_is_over_once_the_peer_is_there(
    tools: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though there is nothing to be sent, as between peers that draw their partners: else it would
    be given up, at the first renewal that it misses, on the word of neighbours that reach it."""
    monkeypatch.setattr(sender_module, "PROBE_AFTER_S", 0.0)
    reports, way = tools.Reports(), ProbedWay()
    sender = Sender("peer", reports, lambda _: way, Forecast(None, 0, "peer"))
    sender.move("there")
    down = []
    for answer in (False, True, True):
        way.begun.get(timeout=PATIENCE_S)  # what came of the last one has been heard
        down.append(sender.is_down)
        way.answers.put(answer)
    sender.stop()
    sender.join()
    assert down == [False, True, False]
    assert reports.of("unreachable") == [("peer",)]


def test_an_outage_at_another_address_is_another_one(tools: Any) -> None:
    """A peer that comes back elsewhere may die again: its next life is waited for until somebody
    says so."""
    swarm = tools.Swarm(tools)
    swarm.kill()
    swarm.send()
    swarm.reports.wait("unreachable")
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
    swarm.outbox.set_addresses({"peer": address})
    assert swarm.reports.wait("unreachable", 2) == [("peer",)] * 2


class SlowWay:
    """Answers a message once it is told to, with success or an error."""

    send_whole = None

    def __init__(self, address: str) -> None:
        self.address, self.begun, self.end = address, threading.Event(), threading.Event()
        self.error: Exception | None = None

    def send(self, parts: Iterator[bytes]) -> "SlowWay":
        list(parts)
        self.begun.set()
        return self

    def result(self) -> pb.RelayResponse:
        assert self.end.wait(PATIENCE_S)
        if self.error:
            raise self.error
        return pb.RelayResponse(verdict=pb.VERDICT_ACCEPTED)

    def cancel(self) -> None: ...

    def close(self) -> None: ...


@pytest.mark.parametrize("way", ["dialled"], indirect=True)
@pytest.mark.parametrize("leaves", [False, True], ids=["moved", "left"])
def test_what_an_old_address_does_not_answer_is_no_outage(tools: Any, leaves: bool) -> None:
    """It is noticed late, perhaps after the peer has come back elsewhere, or has been let go."""
    ways = {address: SlowWay(address) for address in ("old", "new")}
    ways["old"].error = BrokenError(grpc.StatusCode.UNAVAILABLE)
    reports, contract = tools.Reports(), tools.contract()
    sender = Sender("peer", reports, ways.__getitem__, Forecast(None, 0, "peer"))
    sender.move("old")
    head = tools.head()
    sender.post(Letter(head, contract, tools.Outgoing(torch.ones(1000))))
    assert ways["old"].begun.wait(PATIENCE_S)
    if leaves:
        sender.stop()
    else:
        sender.move("new")
    ways["old"].end.set()
    ways["new"].end.set()
    verdict = None if leaves else Verdict.ACCEPTED
    assert reports.wait("sent") == [("peer", head, verdict)]
    sender.stop()
    sender.join()
    assert not reports.of("unreachable")


def test_messages_to_a_peer_that_left_are_given_up(tools: Any) -> None:
    swarm = tools.Swarm(tools)
    swarm.handler.judge = lambda _: Verdict.EPOCH_AHEAD
    heads = [swarm.send(step)[0] for step in (1, 2)]
    swarm.reports.wait("retried")
    swarm.outbox.set_addresses({"another": "127.0.0.1:1"})
    gone = swarm.reports.wait("sent", 2)
    assert sorted(gone, key=lambda event: event[1].step) == [("peer", h, None) for h in heads]


def test_a_server_that_speaks_another_language_is_no_outage(
    tools: Any, caplog: pytest.LogCaptureFixture
) -> None:
    swarm = tools.Swarm(tools)
    server = grpc.server(ThreadPoolExecutor(1), options=[("grpc.so_reuseport", 0)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        swarm.outbox.set_addresses({"peer": f"127.0.0.1:{port}"})
        heads = [swarm.send(step)[0] for step in (1, 2)]
        assert swarm.reports.wait("sent", 2) == [("peer", head, None) for head in heads]
    finally:
        server.stop(None).wait()
    told = [text for text in caplog.messages if "refuses" in text]
    assert told == ["peer refuses a message: UNIMPLEMENTED"], "not for each of thousands of steps"
    assert not swarm.reports.of("retried") + swarm.reports.of("unreachable")


# --- errors of this peer's own --------------------------------------------------------------------


class Fails:
    """Stands in for a function, and raises at its first call."""

    def __init__(self, function: Any) -> None:
        self._function, self._has_failed = function, False

    def __call__(self, *args: Any) -> Any:
        if not self._has_failed:
            self._has_failed = True
            raise ValueError("of no kind that is expected")
        return self._function(*args)


def the_next_goes_out(swarm: Any, lost: Head, caplog: pytest.LogCaptureFixture) -> None:
    """`lost` is reported as not sent, and there is a traceback."""
    assert swarm.reports.wait("sent") == [("peer", lost, None)]
    head, _ = swarm.send(lost.step + 1)
    assert swarm.reports.wait("sent", 2)[1:] == [("peer", head, Verdict.ACCEPTED)]
    assert not swarm.reports.of("retried") + swarm.reports.of("unreachable")
    (told,) = [record for record in caplog.records if record.name == sender_module.__name__]
    assert told.levelname == "ERROR"
    assert told.getMessage() == "sending to peer failed"
    assert "ValueError: of no kind that is expected" in caplog.text


@pytest.mark.parametrize("elements", [1000, LARGE])
def test_what_cannot_be_written_is_given_up_alone(
    tools: Any, elements: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A thread that ended for it would leave the neighbour without messages, in silence."""
    monkeypatch.setattr(Forecast, "coding", Fails(lambda *_: None))
    swarm = tools.Swarm(tools, elements)
    head, outgoing = swarm.send()
    the_next_goes_out(swarm, head, caplog)
    assert outgoing.closed == 1


def test_a_payload_that_cannot_be_read_is_given_up_alone(
    tools: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """It is read in a thread that sends, and what becomes of the call is not the neighbour's fault:
    one that is called unreachable by all who have something to send it is given up."""
    swarm = tools.Swarm(tools, LARGE)
    outgoing = tools.Outgoing(torch.ones(LARGE))
    outgoing.read = Fails(outgoing.read)
    head = tools.head()
    swarm.outbox.send("peer", head, outgoing)
    the_next_goes_out(swarm, head, caplog)
    assert swarm.handler.of("broken") == [(head,)]
    assert outgoing.closed == 1


@pytest.mark.parametrize("elements", [1000, LARGE])
def test_an_error_in_counting_a_message_costs_that_message(
    tools: Any, elements: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    swarm = tools.Swarm(tools, elements)
    monkeypatch.setattr(swarm.reports, "bytes_out", Fails(swarm.reports.bytes_out))
    head, _ = swarm.send()
    the_next_goes_out(swarm, head, caplog)


@pytest.mark.parametrize("report", ["retried", "unreachable"])
def test_an_error_in_telling_of_a_try_costs_that_message(
    tools: Any, report: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    swarm = tools.Swarm(tools)
    monkeypatch.setattr(swarm.reports, report, Fails(getattr(swarm.reports, report)))
    swarm.kill()
    lost, outgoing = swarm.send()
    assert swarm.reports.wait("sent") == [("peer", lost, None)]
    assert outgoing.closed == 1
    swarm.restart()
    head, _ = swarm.send(2)
    assert swarm.reports.wait("sent", 2)[1:] == [("peer", head, Verdict.ACCEPTED)]


@pytest.mark.parametrize("fails", ["sent", "close"])
def test_an_error_in_telling_of_an_answer_holds_nothing_up(
    tools: Any, fails: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message is under way no more, and told of once, if it can be."""
    swarm = tools.Swarm(tools, LARGE)
    outgoing = tools.Outgoing(torch.ones(LARGE))
    broken = swarm.reports if fails == "sent" else outgoing
    monkeypatch.setattr(broken, fails, Fails(getattr(broken, fails)))
    first = tools.head()
    swarm.outbox.send("peer", first, outgoing)
    head, _ = swarm.send(2)
    told = [first] * (fails == "close") + [head]
    assert swarm.reports.wait("sent", len(told)) == [
        ("peer", head, Verdict.ACCEPTED) for head in told
    ]
    swarm.outbox.settle(PATIENCE_S)
    assert swarm.reports.of("sent") == [("peer", head, Verdict.ACCEPTED) for head in told]
