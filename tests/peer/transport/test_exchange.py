"""Pairwise exchanges over gRPC: an offer and its reply in one call, whatever becomes of it.

`initiator` calls `partner`; the tests take the part of both algorithms.
"""

from __future__ import annotations

import gc
import queue
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import grpc
import pytest
import torch
from torch import Tensor

from peer.algorithms.core import Head, Kind, Verdict
from peer.codec.edges import LatticeSetting
from peer.codec.quantizer import Quantizer
from peer.faults import FaultPlan
from peer.transport.client import Exchanges
from peer.transport.visits import MOST, Visit, Visits
from relayswarm.config import FaultsConfig
from relayswarm.net.gate import Denial
from relayswarm.peer.v1 import peer_pb2 as pb
from tests.peer.transport.conftest import PATIENCE_S

LARGE = 600_000  # elements of float32: three chunks
LATTICE = LatticeSetting(8)


@pytest.fixture(params=["dialled", "collected"])
def way(request: pytest.FixtureRequest) -> str:
    """All of this holds for peers with a port, and for those that can only dial out."""
    way: str = request.param
    return way


DIALLED = pytest.mark.parametrize("way", ["dialled"], indirect=True)


class Side:
    """A peer: what it reports, and what it shares."""

    def __init__(
        self, tools: Any, name: str, contract: Any, plan: Any = None, calls: Side | None = None
    ) -> None:
        """`calls` is who initiates exchanges with this side."""
        self.tools, self.name, self.contract = tools, name, contract
        self.handler, self.reports, self.visits = tools.Handler(), tools.Reports(), Visits()
        self.hub = tools.hub(name, contract, "partner")
        if calls is not None:
            self.server = tools.receiver(
                name, calls.hub, self.handler, contract, visits=self.visits
            )
        pairs = Exchanges(self.handler, self.visits)
        self.outbox = tools.outbox(
            self.reports, contract, plan=plan, exchanges=pairs, collectors=self.hub.collectors
        )

    @property
    def shared(self) -> Tensor:
        return self.handler.model

    @shared.setter
    def shared(self, vector: Tensor) -> None:
        self.handler.model = vector

    def send(self, to: Side, kind: Kind, number: int = 1, distance: float = 0.0) -> Head:
        """Offer or reply with what this side shares, rounded for that distance unless it is 0."""
        head = self.tools.head(sender=self.name, kind=kind, exchange=number, count=1)
        vector, lattice = self.shared.clone(), None
        if distance:
            quantizer = Quantizer(LATTICE, seed=0)
            quantizer.saw(distance)
            lattice = quantizer.round(vector, vector, to.name, head)
        self.sent = vector
        outgoing = self.tools.Outgoing(vector)
        outgoing.lattice = lattice
        self.outbox.send(to.name, head, outgoing)
        return head


class Pair:
    def __init__(
        self, tools: Any, elements: int = 1000, apart: float = 0.1, plan: Any = None
    ) -> None:
        contract = tools.contract(elements, rounding=LATTICE)
        self.initiator = Side(tools, "initiator", contract, plan)
        self.partner = Side(tools, "partner", contract, plan, calls=self.initiator)
        self.initiator.outbox.set_addresses({"partner": self.partner.server.address})
        generator = torch.Generator().manual_seed(1)
        x, off = (torch.rand(elements, generator=generator) for _ in range(2))
        self.initiator.shared, self.partner.shared = x, x + apart * off

    def await_another_stream(self) -> None:
        """Of a partner that can only dial out, which opens one as soon as the last is used."""
        collectors = self.initiator.hub.collectors
        with collectors._changed:
            assert self.initiator.hub.address is None or collectors._changed.wait_for(
                lambda: collectors._waiting.get("partner"), PATIENCE_S
            )

    def offer(self, **more: Any) -> Head:
        return self.initiator.send(self.partner, Kind.OFFER, **more)

    def reply(self, **more: Any) -> Head:
        return self.partner.send(self.initiator, Kind.REPLY, **more)


@pytest.fixture
def pair(tools: Any) -> Pair:
    return Pair(tools)


@pytest.mark.parametrize("elements", [1000, LARGE])
@pytest.mark.parametrize("distance", [0.0, 0.2], ids=["plain", "lattice"])
def test_both_get_what_the_other_sent(tools: Any, elements: int, distance: float) -> None:
    pair = Pair(tools, elements)
    initiator, partner = pair.initiator, pair.partner
    initiator.handler.keep = partner.handler.keep = False  # buffers are taken again
    for number in (1, 2, 3):
        offer = pair.offer(number=number, distance=distance)
        (*_, (taken, (x_i,))) = partner.handler.wait("received", number)
        assert taken == offer
        assert torch.equal(x_i, initiator.sent)
        assert initiator.reports.wait("sent", number)[-1] == ("partner", offer, Verdict.ACCEPTED)
        assert not initiator.handler.of("received")[number - 1 :], "before the algorithm answers"
        reply = pair.reply(number=number, distance=distance)
        (*_, (came, (x_j,))) = initiator.handler.wait("received", number)
        assert came == reply
        assert torch.equal(x_j, partner.sent)
        assert partner.reports.wait("sent", number)[-1] == ("initiator", reply, Verdict.ACCEPTED)
    for side in (initiator, partner):
        assert not side.handler.of("broken")
        assert not side.reports.of("retried")
        (written,) = {wire for _, wire in side.reports.of("bytes_out")}
        assert written == ("lattice" if distance else "float32")
        sent = sum(count for count, _ in side.reports.of("bytes_out"))
        assert sent < 3 * elements * (1 if distance else 4) + 3 * 500


@pytest.mark.parametrize("elements", [1000, LARGE])
@pytest.mark.parametrize(
    ("distance", "apart", "tries"),
    [(2.0**-11, 0.1, ["DECODE_FAILED"]), (2.0**-19, 1.0, ["DECODE_FAILED", "DECODE_FAILED"])],
    ids=["16 bits", "full precision"],
)
def test_what_is_too_far_away_is_asked_for_again(
    tools: Any, elements: int, distance: float, apart: float, tries: list[str]
) -> None:
    """In the same call, with more bits and at last in full precision: with the same value."""
    pair = Pair(tools, elements, apart)
    pair.offer(distance=distance)
    ((_, (x_i,)),) = pair.partner.handler.wait("received")
    assert torch.equal(x_i, pair.initiator.sent)
    pair.reply(distance=distance)
    ((_, (x_j,)),) = pair.initiator.handler.wait("received")
    assert torch.equal(x_j, pair.partner.sent)
    pair.partner.reports.wait("sent")
    for side, other in ((pair.initiator, "partner"), (pair.partner, "initiator")):
        assert side.reports.of("retried") == [(other, reason) for reason in tries]
        assert not side.handler.of("broken")


@pytest.mark.parametrize("elements", [1000, LARGE])
def test_a_busy_peer_says_so_at_the_header_and_is_not_asked_again(
    tools: Any, elements: int
) -> None:
    pair = Pair(tools, elements)
    pair.partner.handler.judge = lambda _: Verdict.BUSY
    offer = pair.offer()
    assert pair.initiator.reports.wait("sent") == [("partner", offer, Verdict.BUSY)]
    assert not pair.initiator.reports.of("retried")
    assert pair.partner.handler.of("refused") == [(Verdict.BUSY, offer)]
    assert sum(count for count, _ in pair.initiator.reports.of("bytes_out")) < 1000
    assert not pair.initiator.handler.of("broken")


def test_a_peer_without_the_view_is_asked_again(pair: Pair) -> None:
    answers = iter([Verdict.EPOCH_AHEAD, Verdict.ACCEPTED])
    pair.partner.handler.judge = lambda _: next(answers)
    offer = pair.offer()
    assert pair.initiator.reports.wait("sent") == [("partner", offer, Verdict.ACCEPTED)]
    assert pair.initiator.reports.of("retried") == [("partner", "EPOCH_AHEAD")]


def test_an_offer_is_declined_by_a_reply_without_a_model(pair: Pair) -> None:
    pair.offer()
    pair.partner.handler.wait("received")
    head = pair.initiator.tools.head(
        sender="partner", kind=Kind.REPLY, exchange=1, count=0, lost=True
    )
    pair.partner.outbox.send("initiator", head, pair.partner.tools.Outgoing(torch.empty(1000)))
    assert pair.initiator.handler.wait("lost") == [(head,)]
    assert pair.partner.reports.wait("sent") == [("initiator", head, Verdict.ACCEPTED)]
    assert not pair.partner.handler.of("broken")


def test_an_offer_that_is_lost_may_be_refused(tools: Any) -> None:
    """By a partner that has come to its end since it admitted it, and will not decline it."""
    plan = FaultPlan(FaultsConfig(loss="known", drop=1.0), seed=0)
    pair = Pair(tools, plan=plan)
    pair.partner.handler.judge_content = lambda _: Verdict.STALE_STEP
    offer = pair.offer()
    assert pair.initiator.reports.wait("sent") == [("partner", offer, Verdict.STALE_STEP)]
    assert pair.partner.handler.wait("refused") == [(Verdict.STALE_STEP, replace(offer, lost=True))]


def test_a_reply_that_the_initiator_refuses_is_told(pair: Pair) -> None:
    """It has hung up; neither averages."""
    pair.offer()
    pair.partner.handler.wait("received")
    pair.initiator.handler.judge = lambda _: Verdict.STALE_STEP
    reply = pair.reply()
    assert pair.partner.reports.wait("sent") == [("initiator", reply, Verdict.STALE_STEP)]
    assert not pair.initiator.handler.of("broken")


# --- calls that break -----------------------------------------------------------------------------


def test_an_initiator_that_hangs_up_leaves_an_offer_broken(pair: Pair) -> None:
    offer = pair.offer()
    pair.initiator.reports.wait("sent")
    pair.initiator.outbox.cancel("partner", offer)
    assert pair.partner.handler.wait("broken") == [(offer,)]
    assert pair.initiator.handler.wait("broken") == [(offer,)], "its own"


class Gate(threading.Event):
    """Knows whether somebody has come to it."""

    def __init__(self) -> None:
        super().__init__()
        self.is_reached = threading.Event()

    def wait(self, timeout: float | None = None) -> bool:
        self.is_reached.set()
        return super().wait(timeout)


def test_a_reply_that_is_cut_off_while_it_is_read_is_reported(tools: Any) -> None:
    """There and then, whoever was reading it, and not once somebody collects garbage."""
    pair, gate = Pair(tools, LARGE), Gate()
    offer = pair.offer()
    pair.partner.handler.wait("received")
    outgoing = tools.Outgoing(pair.partner.shared, gate=gate)
    reply = replace(offer, sender="partner", kind=Kind.REPLY)
    visit = pair.partner.visits.of("initiator", reply)
    assert visit is not None
    gc.disable()
    try:
        pair.partner.outbox.send("initiator", reply, outgoing)
        assert gate.is_reached.wait(PATIENCE_S)
        pair.initiator.outbox.cancel("partner", offer)
        with visit._changed:
            assert visit._changed.wait_for(lambda: visit.is_over, PATIENCE_S)
        gate.set()
        assert pair.partner.reports.wait("sent") == [("initiator", reply, None)]
    finally:
        gc.enable()
    assert pair.partner.handler.wait("broken") == [(offer,)]
    assert outgoing.closed == 1


def test_a_reply_that_comes_too_late_is_not_sent(pair: Pair) -> None:
    offer = pair.offer()
    pair.initiator.reports.wait("sent")
    pair.initiator.outbox.cancel("partner", offer)
    pair.partner.handler.wait("broken")
    reply = pair.reply()
    assert pair.partner.reports.wait("sent") == [("initiator", reply, None)]
    (_, (broken,)) = pair.partner.handler.wait("broken", 2)
    assert (broken.sender, broken.exchange, broken.kind) == ("initiator", 1, Kind.OFFER)


def test_a_partner_that_dies_leaves_the_offer_broken(pair: Pair) -> None:
    offer = pair.offer()
    pair.initiator.reports.wait("sent")
    pair.partner.server.stop(0.0)
    assert pair.initiator.handler.wait("broken") == [(offer,)]
    assert pair.partner.handler.wait("broken") == [(offer,)]
    assert len(pair.initiator.reports.of("sent")) == 1


def test_a_call_to_the_unreachable_is_given_up_at_once(pair: Pair) -> None:
    pair.partner.server.stop(0.0)
    offer = pair.offer()
    assert pair.initiator.reports.wait("sent") == [("partner", offer, None)]
    assert pair.initiator.reports.wait("unreachable") == [("partner",)]
    assert not pair.initiator.reports.of("retried")
    assert not pair.initiator.handler.of("broken")


def test_a_link_that_is_closed_at_that_moment_is_no_outage(pair: Pair) -> None:
    """The partner has moved, and the call is made on the link to where it was."""
    sender = pair.initiator.outbox._sender("partner")
    assert sender is not None
    assert sender.link is not None
    sender.link.close()
    offer = pair.offer()
    assert pair.initiator.reports.wait("sent") == [("partner", offer, None)]
    assert not pair.initiator.reports.of("unreachable")


def test_a_partner_that_gives_up_breaks_the_call_off(pair: Pair) -> None:
    """It is there all the same: no outage, after which it would not be called for some time."""
    offer = pair.offer()
    pair.partner.handler.wait("received")
    pair.initiator.reports.wait("sent")
    pair.await_another_stream()
    pair.partner.outbox.cancel("initiator", replace(offer, sender="partner", kind=Kind.REPLY))
    assert pair.initiator.handler.wait("broken") == [(offer,)]
    assert not pair.initiator.reports.of("unreachable")


def test_a_call_is_cancelled_before_its_thread_hears_of_it(tools: Any) -> None:
    """The thread would end the stream in order, which says that nothing more is to come."""
    heard = []
    head = tools.head(sender="initiator", kind=Kind.OFFER, exchange=1)
    visit = Visit(head, lambda: heard.append(visit.is_over))
    visit.cut()
    assert heard == [False]
    assert visit.is_over


def test_after_close_no_call_is_made_and_no_thread_is_left(pair: Pair) -> None:
    offer = pair.offer()
    pair.partner.handler.wait("received")
    pair.initiator.outbox.close(0.1)
    assert pair.partner.handler.wait("broken") == [(offer,)]
    late = pair.offer(number=2)
    assert pair.initiator.reports.wait("sent", 2)[-1] == ("partner", late, None)


# --- faults that are injected ---------------------------------------------------------------------


def test_a_loss_is_announced_or_noticed_by_nobody(tools: Any) -> None:
    for loss in ("known", "silent"):
        edge = [{"sender": "sender", "receiver": "initiator", "drop": 1.0}]
        plan = FaultPlan(FaultsConfig(loss=loss, edge=edge), seed=0)
        pair = Pair(tools, plan=plan)
        pair.offer()
        pair.partner.handler.wait("received")
        pair.initiator.reports.wait("sent")
        reply = pair.reply()
        if loss == "known":
            assert pair.initiator.handler.wait("lost") == [(replace(reply, lost=True),)]
            assert pair.partner.reports.wait("sent") == [("initiator", reply, Verdict.ACCEPTED)]
        else:
            assert pair.partner.reports.wait("sent") == [("initiator", reply, None)]
            pair.initiator.outbox.close(20.0)  # the call is over
            assert not pair.initiator.handler.of("lost")
        assert not pair.initiator.handler.of("broken")
        assert not pair.partner.handler.of("broken")


# --- foreign initiators ---------------------------------------------------------------------------


class Foreign:
    """Plain generated code in the initiator's place."""

    def __init__(self, pair: Pair, sender: str = "initiator") -> None:
        tools, self._partner = pair.initiator.tools, pair.partner
        self.head = tools.head(sender=sender, kind=Kind.OFFER, exchange=1, count=1)
        vector = torch.zeros(1000)
        message = tools.unary(tools.header(self.head, pair.partner.contract), vector)
        self.parts = [
            pb.ExchangeRequest(header=message.header),
            pb.ExchangeRequest(data=message.data),
            pb.ExchangeRequest(trailer=message.trailer),
        ]
        self._queue: queue.SimpleQueue[pb.ExchangeRequest | None] = queue.SimpleQueue()
        self.call = tools.stub(pair.partner.server.address).Exchange(iter(self._queue.get, None))

    def send(self, *parts: pb.ExchangeRequest | None) -> None:
        for part in parts:
            self._queue.put(part)

    def verdict(self) -> str:
        response = next(self.call)
        if response.proceed:
            response = next(self.call)
        return pb.Verdict.Name(response.answer.verdict)

    def error(self) -> tuple[grpc.StatusCode, str]:
        with pytest.raises(grpc.RpcError) as caught:
            list(self.call)
        self.send(None)
        return caught.value.code(), caught.value.details()


@pytest.fixture
def foreign(pair: Pair) -> Iterator[Foreign]:
    foreign = Foreign(pair)
    yield foreign
    foreign.send(None)


@DIALLED
def test_a_reply_that_was_sent_whole_but_never_answered(pair: Pair, foreign: Foreign) -> None:
    """It may have arrived: the partner averages, so nothing is broken."""
    foreign.send(*foreign.parts)
    assert foreign.verdict() == "VERDICT_ACCEPTED"
    pair.partner.handler.wait("received")
    reply = pair.reply()
    responses = [next(foreign.call) for _ in range(3)]
    assert [r.HasField("header") for r in responses] == [True, False, False]
    assert responses[2].HasField("trailer")
    foreign.call.cancel()
    assert pair.partner.reports.wait("sent") == [("initiator", reply, None)]
    assert not pair.partner.handler.of("broken")


@DIALLED
@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ([pb.ExchangeRequest(data=b"x")], "header: missing"),
        ([pb.ExchangeRequest(answer=pb.RelayResponse())], "header: missing"),
        ([0, 1, 0], "comes a second time"),
        ([0, 1, pb.ExchangeRequest(offset=1, data=b"x")], "offset = 1"),
        ([0, 1, pb.ExchangeRequest(trailer=pb.Trailer(), data=b"x")], "send them apart"),
        ([0, 1, None], "ended too early"),
    ],
)
def test_nonsense_is_refused(pair: Pair, foreign: Foreign, parts: list[Any], words: str) -> None:
    foreign.send(*(foreign.parts[p] if isinstance(p, int) else p for p in parts))
    code, text = foreign.error()
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert words in text
    assert len(pair.partner.handler.of("broken")) == (parts[0] == 0)
    assert not pair.partner.handler.of("received")


@DIALLED
def test_a_partner_that_answers_nonsense_is_counted(tools: Any, pair: Pair) -> None:
    def exchange(requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:  # noqa: ARG001
        next(requests)
        yield b"\xff"

    handler = grpc.stream_stream_rpc_method_handler(exchange)
    address = tools.grpc_server("relayswarm.peer.v1.PeerService", {"Exchange": handler})
    pair.initiator.outbox.set_addresses({"partner": address})
    offer = pair.offer()
    assert pair.initiator.reports.wait("sent") == [("partner", offer, None)]
    ((denial, text),) = pair.initiator.handler.of("denied")
    assert denial is Denial.MALFORMED
    assert "partner sends nonsense" in text


@DIALLED
def test_an_exchange_begins_with_an_offer(foreign: Foreign) -> None:
    header = foreign.parts[0]
    header.header.kind = pb.KIND_REPLY
    foreign.send(header)
    assert "send an offer here" in foreign.error()[1]


@DIALLED
def test_after_a_reply_comes_an_answer(pair: Pair, foreign: Foreign) -> None:
    foreign.send(*foreign.parts)
    foreign.verdict()
    pair.partner.handler.wait("received")
    reply = pair.reply()
    foreign.send(foreign.parts[1])
    assert "answer: missing" in foreign.error()[1]
    assert pair.partner.reports.wait("sent") == [("initiator", reply, None)]


@DIALLED
def test_few_calls_wait_at_a_time(pair: Pair) -> None:
    """Handlers hold threads while they wait. A peer's new call takes the place of its old one."""
    callers = [Foreign(pair, f"peer-{k}") for k in range(MOST)]
    for caller in callers:
        caller.send(*caller.parts)
        assert caller.verdict() == "VERDICT_ACCEPTED"
    late = Foreign(pair, "late")
    late.send(*late.parts)
    assert late.verdict() == "VERDICT_BUSY"
    again = Foreign(pair, "peer-0")
    again.send(*again.parts)
    assert again.verdict() == "VERDICT_ACCEPTED"
    assert list(callers[0].call) == [], "over"
    for caller in (*callers, late, again):
        caller.call.cancel()
        caller.send(None)
