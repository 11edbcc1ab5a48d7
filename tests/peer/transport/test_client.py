"""The outbox against real servers: delivery, retries, losses, outages, and who is told what."""

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from peer.algorithms.core import Head, Verdict
from peer.codec import Format
from peer.faults import FaultPlan
from peer.transport import sender as sender_module
from peer.transport.client import Outbox
from peer.transport.sender import BACKLOG, RETRY_GROWTH_LIMIT, growth
from relayswarm.config import FaultsConfig

LARGE = 600_000  # elements of float32: three chunks


class Swarm:
    """One sender, `peer` that receives, and what both report."""

    def __init__(self, tools: Any, elements: int = 1000, plan: Any = None, **changes: Any) -> None:
        self.tools = tools
        self.contract = tools.contract(elements, **changes)
        self.handler = tools.Handler()
        self.reports = tools.Reports()
        self.server = tools.server(self.handler, self.contract)
        self.outbox: Outbox = tools.outbox(self.reports, self.contract, plan=plan)
        self.outbox.set_addresses({"peer": self.server.address})

    def send(self, step: int = 1, gate: threading.Event | None = None, **head: Any) -> Any:
        """Post random vectors; returns the head and the payload."""
        sections = head.pop("sections", 1)
        posted = self.tools.head(step=step, **head)
        span = self.contract.span(posted.kind, posted.tree)
        vectors = torch.randn(sections, span.elements, dtype=self.contract.dtype)
        outgoing = self.tools.Outgoing(*vectors, gate=gate)
        self.outbox.send("peer", posted, outgoing)
        return posted, outgoing

    def restart(self) -> None:
        """The receiver comes back at the same address."""
        self.server = self.tools.server(self.handler, self.contract, self.server.address)

    def kill(self) -> None:
        self.server.stop(0.0)


# --- delivery -------------------------------------------------------------------------------------


@pytest.mark.parametrize("elements", [0, 1, 1000, 262_143, 262_144, LARGE])
def test_delivers_whatever_the_size(tools: Any, elements: int) -> None:
    swarm = Swarm(tools, elements)
    head, outgoing = swarm.send()
    assert swarm.reports.wait("sent") == [("peer", head, Verdict.ACCEPTED)]
    ((got, vectors),) = swarm.handler.of("received")
    assert got == head
    assert torch.equal(vectors[0], outgoing.vectors[0])
    assert outgoing.closed == 1
    assert not swarm.reports.of("retried") + swarm.reports.of("unreachable")


def test_small_payloads_are_read_at_once_and_large_ones_while_they_stream(tools: Any) -> None:
    me = threading.current_thread().name
    small, large = Swarm(tools), Swarm(tools, LARGE)
    _, outgoing = small.send()
    assert outgoing.closed
    assert outgoing.read_from == {me}
    _, outgoing = large.send()
    large.reports.wait("sent")
    assert outgoing.read_from
    assert me not in outgoing.read_from


@pytest.mark.parametrize("elements", [11, LARGE + 1])
def test_delivers_sections_and_halves(tools: Any, elements: int) -> None:
    swarm = Swarm(tools, elements, trees=2, max_sections=2)
    sent = dict(swarm.send(tree=tree, sections=2) for tree in (0, 1))
    for _, _, verdict in swarm.reports.wait("sent", 2):
        assert verdict is Verdict.ACCEPTED
    for head, vectors in swarm.handler.of("received"):
        assert torch.equal(torch.stack(vectors), torch.stack(sent[head].vectors))


@pytest.mark.parametrize("fmt", list(Format))
@pytest.mark.parametrize("elements", [1000, LARGE])
def test_delivers_in_the_contracts_format(tools: Any, fmt: Format, elements: int) -> None:
    swarm = Swarm(tools, elements, wire_format=fmt)
    _, outgoing = swarm.send()
    swarm.reports.wait("sent")
    ((_, (vector,)),) = swarm.handler.of("received")
    assert torch.equal(vector, outgoing.vectors[0].to(fmt.dtype).to(torch.float32))
    counted = sum(count for (count,) in swarm.reports.of("bytes_out"))
    payload = elements * fmt.itemsize
    assert payload < counted < payload + 1000


@pytest.mark.parametrize("elements", [1000, LARGE])
def test_both_sides_count_the_same_bytes(tools: Any, elements: int) -> None:
    swarm = Swarm(tools, elements)
    swarm.send()
    swarm.reports.wait("sent")
    out = sum(count for (count,) in swarm.reports.of("bytes_out"))
    assert out == sum(count for (count,) in swarm.handler.of("bytes_in"))


def test_messages_of_a_slot_arrive_in_order(tools: Any) -> None:
    swarm = Swarm(tools)
    swarm.handler.keep = False
    heads = []
    for step in range(30):
        heads.append(swarm.send(step)[0])
        swarm.reports.wait("sent", max(step - BACKLOG + 2, 0))  # no more than the backlog waits
    assert [head for _, head, _ in swarm.reports.wait("sent", 30)] == heads
    assert [head for head, _ in swarm.handler.of("received")] == heads


@pytest.mark.parametrize(
    "verdict",
    [v for v in Verdict if v not in (Verdict.ACCEPTED, Verdict.BUSY, Verdict.EPOCH_AHEAD)],
)
@pytest.mark.parametrize("elements", [1000, LARGE])
def test_a_refusal_is_final(tools: Any, verdict: Verdict, elements: int) -> None:
    swarm = Swarm(tools, elements)
    swarm.handler.judge = lambda _: verdict
    head, outgoing = swarm.send()
    assert swarm.reports.wait("sent") == [("peer", head, verdict)]
    assert len(swarm.handler.of("admit")) == 1
    assert outgoing.closed == 1


def test_an_early_refusal_saves_the_payload(tools: Any) -> None:
    swarm = Swarm(tools, 8_000_000)
    swarm.handler.judge = lambda _: Verdict.STALE_STEP
    swarm.send()
    swarm.reports.wait("sent")
    assert sum(count for (count,) in swarm.reports.of("bytes_out")) < 16_000_000  # half


# --- trying again ---------------------------------------------------------------------------------


@pytest.mark.parametrize("passing", [Verdict.EPOCH_AHEAD, Verdict.BUSY])
@pytest.mark.parametrize("elements", [1000, LARGE])
def test_tries_again_while_the_receiver_is_not_ready(
    tools: Any, passing: Verdict, elements: int
) -> None:
    swarm = Swarm(tools, elements)
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


def test_a_slot_that_is_stuck_does_not_hold_up_another(tools: Any) -> None:
    swarm = Swarm(tools, trees=2)
    swarm.handler.judge = lambda head: Verdict.BUSY if head.tree == 0 else Verdict.ACCEPTED
    swarm.send(tree=0)
    swarm.reports.wait("retried")
    head, _ = swarm.send(tree=1)
    assert swarm.reports.wait("sent") == [("peer", head, Verdict.ACCEPTED)]


# --- rule R7: newer messages take the place of older ones -----------------------------------------


def test_one_more_than_the_backlog_drops_the_oldest(tools: Any) -> None:
    swarm = Swarm(tools)
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
    swarm = Swarm(tools, LARGE)
    gate = threading.Event()
    first, outgoing = swarm.send(0, gate)
    swarm.handler.wait("bytes_in", 2)
    rest = [swarm.send(step)[0] for step in range(1, BACKLOG + 1)]
    assert swarm.handler.wait("broken") == [(first,)]
    gate.set()
    assert swarm.reports.wait("sent") == [("peer", first, None)]
    assert outgoing.closed == 1
    assert swarm.reports.wait("sent", 3)[1:] == [("peer", h, Verdict.ACCEPTED) for h in rest]


@pytest.mark.parametrize("elements", [1000, LARGE])
def test_cancels_what_waits(tools: Any, elements: int) -> None:
    swarm = Swarm(tools, elements)
    swarm.handler.judge = lambda _: Verdict.EPOCH_AHEAD
    head, outgoing = swarm.send()
    swarm.reports.wait("retried")
    swarm.outbox.cancel("peer", head)
    assert swarm.reports.wait("sent") == [("peer", head, None)]
    assert outgoing.closed == 1


def test_cancels_a_stream(tools: Any) -> None:
    swarm = Swarm(tools, LARGE)
    gate = threading.Event()
    head, outgoing = swarm.send(gate=gate)
    swarm.handler.wait("bytes_in", 2)
    swarm.outbox.cancel("peer", head)
    assert swarm.handler.wait("broken") == [(head,)]
    gate.set()
    assert swarm.reports.wait("sent") == [("peer", head, None)]
    assert outgoing.closed == 1


def test_cancelling_what_is_answered_or_unknown_does_nothing(tools: Any) -> None:
    swarm = Swarm(tools)
    head, _ = swarm.send()
    swarm.reports.wait("sent")
    swarm.outbox.cancel("peer", head)
    swarm.outbox.cancel("stranger", head)
    swarm.send(2)
    assert [v for _, _, v in swarm.reports.wait("sent", 2)] == [Verdict.ACCEPTED] * 2


# --- losses on purpose ----------------------------------------------------------------------------


@pytest.mark.parametrize("elements", [1000, LARGE])
def test_a_known_loss_is_announced(tools: Any, elements: int) -> None:
    plan = FaultPlan(FaultsConfig(drop=1.0, loss="known"), seed=0)
    swarm = Swarm(tools, elements, plan)
    head, outgoing = swarm.send()
    assert swarm.reports.wait("sent") == [("peer", head, Verdict.ACCEPTED)]
    ((announced,),) = swarm.handler.of("lost")
    assert announced.lost
    assert (announced.step, announced.sender) == (head.step, head.sender)
    assert outgoing.closed == 1
    assert not outgoing.read_from
    assert 0 < sum(count for (count,) in swarm.reports.of("bytes_out")) < 200
    assert not swarm.handler.of("received")


def test_an_announcement_waits_for_the_epoch_too(tools: Any) -> None:
    swarm = Swarm(tools, plan=FaultPlan(FaultsConfig(drop=1.0), seed=0))
    answers = iter([Verdict.EPOCH_AHEAD, Verdict.ACCEPTED])
    swarm.handler.judge = lambda _: next(answers)
    swarm.send()
    swarm.reports.wait("sent")
    assert len(swarm.handler.of("lost")) == 1


def test_a_silent_loss_is_silent(tools: Any) -> None:
    plan = FaultPlan(FaultsConfig(drop=1.0, loss="silent"), seed=0)
    swarm = Swarm(tools, plan=plan)
    head, outgoing = swarm.send()
    assert swarm.reports.of("sent") == [("peer", head, None)]
    assert outgoing.closed == 1
    assert not swarm.reports.of("bytes_out")
    swarm.outbox.close(1.0)
    assert not swarm.handler.events


def test_exactly_the_planned_messages_are_lost(tools: Any) -> None:
    plan = FaultPlan(FaultsConfig(drop=0.4), seed=5)
    swarm = Swarm(tools, plan=plan)
    swarm.handler.keep = False
    for step in range(30):
        swarm.send(step)
        swarm.reports.wait("sent", step + 1)
    lost = {head.step for (head,) in swarm.handler.of("lost")}
    assert lost == {s for s in range(30) if plan.drops(s, 0, 0, "sender", "peer")}
    assert {head.step for head, _ in swarm.handler.of("received")} == set(range(30)) - lost


@pytest.mark.parametrize("elements", [1000, LARGE])
def test_a_planned_duplicate_arrives_twice_and_is_reported_once(tools: Any, elements: int) -> None:
    swarm = Swarm(tools, elements, FaultPlan(FaultsConfig(duplicate=1.0), seed=0))
    head, outgoing = swarm.send()
    received = swarm.handler.wait("received", 2)
    assert [got for got, _ in received] == [head] * 2
    for _, vectors in received:
        assert torch.equal(vectors[0], outgoing.vectors[0])
    swarm.outbox.close(20.0)
    assert swarm.reports.of("sent") == [("peer", head, Verdict.ACCEPTED)]
    assert outgoing.closed == 1


@pytest.mark.parametrize("elements", [1000, LARGE])
def test_a_planned_delay_is_kept_to(tools: Any, elements: int) -> None:
    swarm = Swarm(tools, elements, FaultPlan(FaultsConfig(delay_s=0.1, jitter_s=0.1), seed=0))
    fate = FaultPlan(FaultsConfig(delay_s=0.1, jitter_s=0.1), seed=0).fate(
        1, 0, 0, "sender", "peer"
    )
    start = time.monotonic()
    head, _ = swarm.send()
    assert swarm.reports.wait("sent") == [("peer", head, Verdict.ACCEPTED)]
    assert time.monotonic() - start >= fate.delays_s[0] >= 0.1


def test_a_delayed_message_can_be_cancelled_with_its_copy(tools: Any) -> None:
    plan = FaultPlan(FaultsConfig(delay_s=3600.0, duplicate=1.0), seed=0)
    swarm = Swarm(tools, plan=plan)
    head, _ = swarm.send()
    swarm.outbox.cancel("peer", head)
    assert swarm.reports.of("sent") == [("peer", head, None)]
    start = time.monotonic()
    swarm.outbox.close(60.0)  # nothing is left to wait for
    assert time.monotonic() - start < 30
    assert not swarm.handler.of("admit")


# --- outages --------------------------------------------------------------------------------------


@pytest.mark.parametrize("elements", [1000, LARGE])
def test_an_outage_is_told_once_and_tries_go_on_until_it_ends(tools: Any, elements: int) -> None:
    swarm = Swarm(tools, elements)
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
    swarm = Swarm(tools, LARGE)
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


def test_a_peer_that_hangs_is_unreachable(tools: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender_module, "UNARY_TIMEOUT_S", 0.2)
    swarm = Swarm(tools)
    awake = threading.Event()

    def hang(_: Head) -> Verdict:
        awake.wait(20)
        return Verdict.ACCEPTED

    swarm.handler.judge = hang
    head, _ = swarm.send()
    assert swarm.reports.wait("unreachable") == [("peer",)]
    awake.set()
    assert swarm.reports.wait("sent") == [("peer", head, Verdict.ACCEPTED)]


def test_a_peer_without_address_is_unreachable_until_it_has_one(tools: Any) -> None:
    swarm = Swarm(tools)
    swarm.outbox.set_addresses({})
    head, _ = swarm.send()
    assert swarm.reports.wait("unreachable") == [("peer",)]
    swarm.outbox.set_addresses({"peer": swarm.server.address})
    assert swarm.reports.wait("sent") == [("peer", head, Verdict.ACCEPTED)]


@pytest.mark.parametrize("elements", [1000, LARGE])
def test_follows_a_peer_that_moves(tools: Any, elements: int) -> None:
    swarm = Swarm(tools, elements)
    swarm.kill()
    head, _ = swarm.send()
    swarm.reports.wait("retried")
    elsewhere = tools.server(swarm.handler, swarm.contract)
    swarm.outbox.set_addresses({"peer": elsewhere.address})
    assert swarm.reports.wait("sent") == [("peer", head, Verdict.ACCEPTED)]


@pytest.mark.parametrize("elements", [1000, LARGE])
def test_a_stream_follows_a_peer_that_moves(tools: Any, elements: int) -> None:
    """What is under way to the old address is cut off there and sent again to the new one."""
    swarm = Swarm(tools, elements)
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


def test_messages_to_a_peer_that_left_are_given_up(tools: Any) -> None:
    swarm = Swarm(tools)
    swarm.handler.judge = lambda _: Verdict.EPOCH_AHEAD
    heads = [swarm.send(step)[0] for step in (1, 2)]
    swarm.reports.wait("retried")
    swarm.outbox.set_addresses({"another": "127.0.0.1:1"})
    gone = swarm.reports.wait("sent", 2)
    assert sorted(gone, key=lambda event: event[1].step) == [("peer", h, None) for h in heads]


def test_a_server_that_speaks_another_language_is_no_outage(tools: Any) -> None:
    swarm = Swarm(tools)
    server = grpc.server(ThreadPoolExecutor(1), options=[("grpc.so_reuseport", 0)])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        swarm.outbox.set_addresses({"peer": f"127.0.0.1:{port}"})
        head, _ = swarm.send()
        assert swarm.reports.wait("sent") == [("peer", head, None)]
    finally:
        server.stop(None).wait()
    assert not swarm.reports.of("retried") + swarm.reports.of("unreachable")


# --- the end --------------------------------------------------------------------------------------


@pytest.mark.parametrize("elements", [1000, LARGE])
def test_close_waits_for_what_is_under_way(tools: Any, elements: int) -> None:
    swarm = Swarm(tools, elements)
    ready = iter([Verdict.BUSY] * 3)
    swarm.handler.judge = lambda _: next(ready, Verdict.ACCEPTED)
    heads = [swarm.send(step)[0] for step in range(BACKLOG)]
    swarm.outbox.close(20.0)
    assert swarm.reports.of("sent") == [("peer", head, Verdict.ACCEPTED) for head in heads]


def test_close_does_not_wait_longer_than_it_is_told(tools: Any) -> None:
    swarm = Swarm(tools)
    swarm.handler.judge = lambda _: Verdict.EPOCH_AHEAD
    head, _ = swarm.send()
    swarm.outbox.close(0.2)
    assert swarm.reports.of("sent") == [("peer", head, None)]


def test_close_cuts_off_a_call_that_hangs(tools: Any) -> None:
    swarm = Swarm(tools)
    awake = threading.Event()
    swarm.handler.judge = lambda _: Verdict.ACCEPTED if awake.wait(20) else Verdict.BUSY
    head, _ = swarm.send()
    swarm.handler.wait("admit")
    swarm.outbox.close(0.1)
    awake.set()
    assert swarm.reports.of("sent") == [("peer", head, None)]


def test_close_does_not_wait_for_the_unreachable(tools: Any) -> None:
    swarm = Swarm(tools)
    swarm.kill()
    head, _ = swarm.send()
    swarm.reports.wait("unreachable")
    start = time.monotonic()
    swarm.outbox.close(60.0)
    assert time.monotonic() - start < 30
    assert swarm.reports.of("sent") == [("peer", head, None)]


def test_after_close_nothing_is_sent_and_no_thread_is_left(tools: Any) -> None:
    swarm = Swarm(tools)
    swarm.send()
    swarm.outbox.close(20.0)
    head, outgoing = swarm.send(2)
    assert swarm.reports.of("sent")[-1] == ("peer", head, None)
    assert outgoing.closed == 1
    names = [thread.name for thread in threading.enumerate()]
    assert not [name for name in names if name.startswith("relayswarm-send")]


def test_every_message_is_reported_exactly_once(tools: Any) -> None:
    """Also when cancelling, replacing, refusing and closing race with each other."""
    swarm = Swarm(tools)
    rounds = iter(range(10**9))
    swarm.handler.judge = lambda _: list(Verdict)[next(rounds) % len(Verdict)]
    swarm.handler.keep = False
    heads = []
    for step in range(150):
        head, _ = swarm.send(step)
        heads.append(head)
        if step % 7 == 0:
            swarm.outbox.cancel("peer", head)
    swarm.outbox.close(0.3)
    reported = [head for _, head, _ in swarm.reports.of("sent")]
    assert sorted(reported, key=lambda head: head.step) == heads


def test_a_port_that_nobody_listens_on(tools: Any) -> None:
    """Refused connections are outages, not errors, and leave nothing behind."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
    reports = tools.Reports()
    outbox = tools.outbox(reports, tools.contract())
    outbox.set_addresses({"peer": address})
    outbox.send("peer", tools.head(), tools.Outgoing(torch.zeros(1000)))
    reports.wait("unreachable")
    outbox.close(1.0)
    assert [verdict for _, _, verdict in reports.of("sent")] == [None]
