"""The outbox against real servers: what is delivered, lost on purpose, and told at the end."""

import socket
import threading
import time
from typing import Any

import pytest
import torch

from peer.algorithms.core import Verdict
from peer.codec import Format
from peer.faults import FaultPlan
from peer.transport.sender import BACKLOG
from peer.transport.wire import CHUNK_BYTES, LARGE_CHUNK_BYTES, LONG_BYTES, PREFIX_BYTES
from relayswarm.config import FaultsConfig

LARGE = 600_000  # elements of float32: three chunks
LONG = LONG_BYTES // 4  # elements of float32


@pytest.fixture(params=["dialled", "collected"])
def way(request: pytest.FixtureRequest) -> str:
    """All of this holds for peers with a port, and for those that can only dial out."""
    way: str = request.param
    return way


# --- delivery -------------------------------------------------------------------------------------


@pytest.mark.parametrize("elements", [0, 1, 1000, 262_143, 262_144, LARGE])
def test_delivers_whatever_the_size(tools: Any, elements: int) -> None:
    swarm = tools.Swarm(tools, elements)
    head, outgoing = swarm.send()
    assert swarm.reports.wait("sent") == [("peer", head, Verdict.ACCEPTED)]
    ((got, vectors),) = swarm.handler.of("received")
    assert got == head
    assert torch.equal(vectors[0], outgoing.vectors[0])
    assert outgoing.closed == 1
    assert not swarm.reports.of("retried") + swarm.reports.of("unreachable")


@pytest.mark.parametrize(("elements", "size"), [(LONG - 1, CHUNK_BYTES), (LONG, LARGE_CHUNK_BYTES)])
def test_long_messages_come_in_larger_chunks(tools: Any, elements: int, size: int) -> None:
    swarm = tools.Swarm(tools, elements)
    head, outgoing = swarm.send()
    assert swarm.reports.wait("sent") == [("peer", head, Verdict.ACCEPTED)]
    ((_, vectors),) = swarm.handler.of("received")
    assert torch.equal(vectors[0], outgoing.vectors[0])
    assert max(count for (count,) in swarm.handler.of("bytes_in")) == size + PREFIX_BYTES


def test_small_payloads_are_read_at_once_and_large_ones_while_they_stream(tools: Any) -> None:
    me = threading.current_thread().name
    small, large = tools.Swarm(tools), tools.Swarm(tools, LARGE)
    _, outgoing = small.send()
    assert outgoing.closed
    assert outgoing.read_from == {me}
    _, outgoing = large.send()
    large.reports.wait("sent")
    assert outgoing.read_from
    assert me not in outgoing.read_from


@pytest.mark.parametrize("elements", [11, LARGE + 1])
def test_delivers_sections_and_halves(tools: Any, elements: int) -> None:
    swarm = tools.Swarm(tools, elements, trees=2, sections=2)
    sent = dict(swarm.send(tree=tree, sections=2) for tree in (0, 1))
    for _, _, verdict in swarm.reports.wait("sent", 2):
        assert verdict is Verdict.ACCEPTED
    for head, vectors in swarm.handler.of("received"):
        assert torch.equal(torch.stack(vectors), torch.stack(sent[head].vectors))


@pytest.mark.parametrize("fmt", list(Format))
@pytest.mark.parametrize("elements", [1000, LARGE])
def test_delivers_in_the_contracts_format(tools: Any, fmt: Format, elements: int) -> None:
    swarm = tools.Swarm(tools, elements, wire_format=fmt)
    _, outgoing = swarm.send()
    swarm.reports.wait("sent")
    ((_, (vector,)),) = swarm.handler.of("received")
    assert torch.equal(vector, outgoing.vectors[0].to(fmt.dtype).to(torch.float32))
    counted = sum(count for count, _ in swarm.reports.of("bytes_out"))
    payload = elements * fmt.itemsize
    assert payload < counted < payload + 1000


@pytest.mark.parametrize("elements", [1000, LARGE])
def test_both_sides_count_the_same_bytes(tools: Any, elements: int) -> None:
    swarm = tools.Swarm(tools, elements)
    swarm.send()
    swarm.reports.wait("sent")
    out = sum(count for count, _ in swarm.reports.of("bytes_out"))
    assert out == sum(count for (count,) in swarm.handler.of("bytes_in"))


def test_messages_of_a_slot_arrive_in_order(tools: Any) -> None:
    swarm = tools.Swarm(tools)
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
    swarm = tools.Swarm(tools, elements)
    swarm.handler.judge = lambda _: verdict
    head, outgoing = swarm.send()
    assert swarm.reports.wait("sent") == [("peer", head, verdict)]
    assert len(swarm.handler.of("admit")) == 1
    assert outgoing.closed == 1


def test_an_early_refusal_saves_the_payload(tools: Any) -> None:
    swarm = tools.Swarm(tools, 8_000_000)
    swarm.handler.judge = lambda _: Verdict.STALE_STEP
    swarm.send()
    swarm.reports.wait("sent")
    assert sum(count for count, _ in swarm.reports.of("bytes_out")) < 16_000_000  # half


# --- losses on purpose ----------------------------------------------------------------------------


@pytest.mark.parametrize("elements", [1000, LARGE])
def test_a_known_loss_is_announced(tools: Any, elements: int) -> None:
    plan = FaultPlan(FaultsConfig(drop=1.0, loss="known"), seed=0)
    swarm = tools.Swarm(tools, elements, plan)
    head, outgoing = swarm.send()
    assert swarm.reports.wait("sent") == [("peer", head, Verdict.ACCEPTED)]
    ((announced,),) = swarm.handler.of("lost")
    assert announced.lost
    assert (announced.step, announced.sender) == (head.step, head.sender)
    assert outgoing.closed == 1
    assert not outgoing.read_from
    assert 0 < sum(count for count, _ in swarm.reports.of("bytes_out")) < 200
    assert not swarm.handler.of("received")


def test_an_announcement_waits_for_the_epoch_too(tools: Any) -> None:
    swarm = tools.Swarm(tools, plan=FaultPlan(FaultsConfig(drop=1.0), seed=0))
    answers = iter([Verdict.EPOCH_AHEAD, Verdict.ACCEPTED])
    swarm.handler.judge = lambda _: next(answers)
    swarm.send()
    swarm.reports.wait("sent")
    assert len(swarm.handler.of("lost")) == 1


def test_a_silent_loss_is_silent(tools: Any) -> None:
    plan = FaultPlan(FaultsConfig(drop=1.0, loss="silent"), seed=0)
    swarm = tools.Swarm(tools, plan=plan)
    head, outgoing = swarm.send()
    assert swarm.reports.of("sent") == [("peer", head, None)]
    assert outgoing.closed == 1
    assert not swarm.reports.of("bytes_out")
    swarm.outbox.close(1.0)
    assert not swarm.handler.events


def test_exactly_the_planned_messages_are_lost(tools: Any) -> None:
    plan = FaultPlan(FaultsConfig(drop=0.4), seed=5)
    swarm = tools.Swarm(tools, plan=plan)
    swarm.handler.keep = False
    for step in range(30):
        swarm.send(step)
        swarm.reports.wait("sent", step + 1)
    lost = {head.step for (head,) in swarm.handler.of("lost")}
    assert lost == {s for s in range(30) if plan.drops(s, 0, 0, "sender", "peer")}
    assert {head.step for head, _ in swarm.handler.of("received")} == set(range(30)) - lost


@pytest.mark.parametrize("elements", [1000, LARGE])
def test_a_planned_duplicate_arrives_twice_and_is_reported_once(tools: Any, elements: int) -> None:
    swarm = tools.Swarm(tools, elements, FaultPlan(FaultsConfig(duplicate=1.0), seed=0))
    head, outgoing = swarm.send()
    received = swarm.handler.wait("received", 2)
    assert [got for got, _ in received] == [head] * 2
    for _, vectors in received:
        assert torch.equal(vectors[0], outgoing.vectors[0])
    swarm.outbox.close(20.0)
    assert swarm.reports.of("sent") == [("peer", head, Verdict.ACCEPTED)]
    assert outgoing.closed == 1


def test_a_copy_does_not_overtake_the_message_before(tools: Any) -> None:
    """Whoever has the newer message does not wait for the older one any more."""
    faults = FaultsConfig(duplicate=1.0, jitter_s=0.1)
    swarm = tools.Swarm(tools, plan=FaultPlan(faults, seed=0))
    swarm.handler.keep = False
    for step in range(0, 12, 2):
        swarm.send(step)
        swarm.send(step + 1)
        swarm.reports.wait("sent", step + 2)
    received = swarm.handler.wait("received", 24)
    steps = [head.step for head, _ in received]
    assert steps == sorted(steps)


@pytest.mark.parametrize("elements", [1000, LARGE])
def test_a_planned_delay_is_kept_to(tools: Any, elements: int) -> None:
    swarm = tools.Swarm(tools, elements, FaultPlan(FaultsConfig(delay_s=0.1, jitter_s=0.1), seed=0))
    fate = FaultPlan(FaultsConfig(delay_s=0.1, jitter_s=0.1), seed=0).fate(
        1, 0, 0, "sender", "peer"
    )
    start = time.monotonic()
    head, _ = swarm.send()
    assert swarm.reports.wait("sent") == [("peer", head, Verdict.ACCEPTED)]
    assert time.monotonic() - start >= fate.delays_s[0] >= 0.1


def test_a_delayed_message_can_be_cancelled_with_its_copy(tools: Any) -> None:
    plan = FaultPlan(FaultsConfig(delay_s=3600.0, duplicate=1.0), seed=0)
    swarm = tools.Swarm(tools, plan=plan)
    head, _ = swarm.send()
    swarm.outbox.cancel("peer", head)
    assert swarm.reports.of("sent") == [("peer", head, None)]
    start = time.monotonic()
    swarm.outbox.close(60.0)  # nothing is left to wait for
    assert time.monotonic() - start < 30
    assert not swarm.handler.of("admit")


# --- the end --------------------------------------------------------------------------------------


@pytest.mark.parametrize("elements", [1000, LARGE])
def test_close_waits_for_what_is_under_way(tools: Any, elements: int) -> None:
    swarm = tools.Swarm(tools, elements)
    swarm.handler.keep = False
    ready = iter([Verdict.BUSY] * 3)
    swarm.handler.judge = lambda _: next(ready, Verdict.ACCEPTED)
    heads = [swarm.send(step)[0] for step in range(BACKLOG)]
    swarm.outbox.close(20.0)
    assert swarm.reports.of("sent") == [("peer", head, Verdict.ACCEPTED) for head in heads]


def test_settling_waits_for_answers_and_goes_on_sending(tools: Any) -> None:
    swarm = tools.Swarm(tools)
    ready = iter([Verdict.BUSY] * 3)
    swarm.handler.judge = lambda _: next(ready, Verdict.ACCEPTED)
    first, _ = swarm.send()
    swarm.outbox.settle(20.0)
    assert swarm.reports.of("sent") == [("peer", first, Verdict.ACCEPTED)]
    swarm.handler.judge = lambda _: Verdict.EPOCH_AHEAD
    second, _ = swarm.send(2)
    swarm.outbox.settle(0.1)
    assert len(swarm.reports.of("sent")) == 1
    swarm.handler.judge = lambda _: Verdict.ACCEPTED
    assert swarm.reports.wait("sent", 2)[1] == ("peer", second, Verdict.ACCEPTED)


def test_close_does_not_wait_longer_than_it_is_told(tools: Any) -> None:
    swarm = tools.Swarm(tools)
    swarm.handler.judge = lambda _: Verdict.EPOCH_AHEAD
    head, _ = swarm.send()
    swarm.outbox.close(0.2)
    assert swarm.reports.of("sent") == [("peer", head, None)]


def test_close_cuts_off_a_call_that_hangs(tools: Any) -> None:
    swarm = tools.Swarm(tools)
    awake = threading.Event()
    swarm.handler.judge = lambda _: Verdict.ACCEPTED if awake.wait(20) else Verdict.BUSY
    head, _ = swarm.send()
    swarm.handler.wait("admit")
    swarm.outbox.close(0.1)
    awake.set()
    assert swarm.reports.of("sent") == [("peer", head, None)]


def test_close_does_not_wait_for_the_unreachable(tools: Any) -> None:
    swarm = tools.Swarm(tools)
    swarm.kill()
    head, _ = swarm.send()
    swarm.reports.wait("unreachable")
    start = time.monotonic()
    swarm.outbox.close(60.0)
    assert time.monotonic() - start < 30
    assert swarm.reports.of("sent") == [("peer", head, None)]


def test_after_close_nothing_is_sent_and_no_thread_is_left(tools: Any) -> None:
    swarm = tools.Swarm(tools)
    swarm.send()
    swarm.outbox.close(20.0)
    head, outgoing = swarm.send(2)
    assert swarm.reports.of("sent")[-1] == ("peer", head, None)
    assert outgoing.closed == 1
    names = [thread.name for thread in threading.enumerate()]
    assert not [name for name in names if name.startswith("relayswarm-send")]


class Fleeting(dict[str, Any]):
    """As where another thread has a view that goes without a peer: what was there is gone."""

    def __contains__(self, peer: object) -> bool:
        return super().pop(peer, None) is not None


def test_a_peer_may_be_let_go_while_a_message_to_it_is_cancelled(tools: Any) -> None:
    swarm = tools.Swarm(tools)
    head, _ = swarm.send()
    swarm.reports.wait("sent")
    sender = swarm.outbox._senders["peer"]
    swarm.outbox._senders = Fleeting(peer=sender)
    swarm.outbox.cancel("peer", head)
    sender.stop()


def test_every_message_is_reported_exactly_once(tools: Any) -> None:
    """Also when cancelling, replacing, refusing and closing race with each other."""
    swarm = tools.Swarm(tools)
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
