"""Memory stays where it is, however many messages come and go, and however they end."""

from __future__ import annotations

import gc
import os
import resource
from pathlib import Path
from typing import Any

import pytest
import torch

from peer.algorithms.core import Kind, Verdict
from peer.codec import Format, encode
from peer.process import keep_freed_memory

ELEMENTS = 400_000  # 1.6 MB: a stream of two chunks
ROUNDS, FAILED, WARM_UP = 1000, 100, 150
ALLOWED = 12 << 20
"""Bytes, for what pools and arenas still take after the warm-up: 7 messages, of 1,000 or 100."""


def resident() -> int:
    """Bytes of this process that are in memory now."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()


@pytest.fixture
def swarm(tools: Any) -> Any:
    if not os.path.exists("/proc/self/statm"):
        pytest.skip("only Linux tells how much memory is resident")
    keep_freed_memory()
    swarm = tools.Swarm(tools, ELEMENTS)
    swarm.handler.keep = False
    return swarm


def clear(swarm: Any) -> None:
    """What the recorders noted is not the transport's."""
    for recorder in (swarm.handler, swarm.reports):
        with recorder.changed:
            recorder.events.clear()


def send(swarm: Any, step: int) -> Verdict | None:
    head, _ = swarm.send(step=step)
    ((_, sent, verdict),) = swarm.reports.wait("sent")
    assert sent == head
    clear(swarm)
    return verdict  # type: ignore[no-any-return]


def test_memory_is_flat_over_a_thousand_rounds(swarm: Any) -> None:
    for step in range(WARM_UP):
        assert send(swarm, step) is Verdict.ACCEPTED
    before = resident()
    for step in range(WARM_UP, WARM_UP + ROUNDS):
        assert send(swarm, step) is Verdict.ACCEPTED
    assert resident() - before < ALLOWED


@pytest.mark.parametrize("failure", ["refused at the end", "damaged", "cut off"])
def test_memory_is_flat_after_a_hundred_failed_rounds(tools: Any, swarm: Any, failure: str) -> None:
    stub = tools.stub(swarm.server.address)

    def fail(step: int) -> None:
        if failure == "refused at the end":
            swarm.handler.judge_content = lambda _: Verdict.BAD_METRIC
            assert send(swarm, step) is Verdict.BAD_METRIC
            return
        head = tools.head(step=step, sender="foreign", kind=Kind.RELAY)
        payload = bytes(encode(torch.ones(ELEMENTS), Format.FLOAT32))
        requests = list(tools.stream(tools.header(head, swarm.contract), payload))
        if failure == "damaged":
            requests[-1].trailer.xxh3 ^= 1
            assert stub.Relay(iter(requests)).verdict
        else:
            with pytest.raises(Exception, match="INVALID_ARGUMENT"):
                stub.Relay(iter(requests[:-1]))
        assert swarm.handler.wait("broken")
        clear(swarm)

    for step in range(FAILED // 2):
        fail(step)
    before = resident()
    for step in range(FAILED // 2, FAILED // 2 + FAILED):
        fail(step)
    assert resident() - before < ALLOWED
    swarm.handler.judge_content = lambda _: Verdict.ACCEPTED
    assert send(swarm, 2 * FAILED) is Verdict.ACCEPTED
