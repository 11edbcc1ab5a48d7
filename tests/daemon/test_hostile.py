"""Hostile calls to a peer that trains: a slice of `benchmarks/hostile.py`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from typing import Any

import psutil

from benchmarks.hostile import HOSTILE, Caller, storm, unexpected
from tests.daemon.test_observing import scrape

CALLS, RATE = 200, 100.0


def test_hostile_calls_are_refused_and_counted_and_training_goes_on(
    daemons: Callable[..., Any],
) -> None:
    swarm = daemons(
        *("task.name=digits", "data.batch_size=8", "topology.graph=chain"),
        *("steps=10000000", "faults.delay_s=0.01"),
        peers=3,
    )
    target = swarm.peers["peer-0"]
    started = target.until("peer_started")
    target.until_step(20)
    process = psutil.Process(target.pid)
    with closing(Caller(swarm.address, started["address"])) as caller:
        calls = {name: call for name, (call, _) in HOSTILE.items()}
        storm(caller, calls, len(calls), RATE)  # what it takes the first time is not bloat
        before, step = process.memory_info().rss, target.step()
        storm(caller, calls, CALLS, RATE)
        caller.settle(1.0)
        target.until_step(step + 20)
        assert process.memory_info().rss - before < 50 * 2**20
        caller.settle(20.0)  # cancelled calls end, too
        assert not unexpected(caller.outcomes)
        assert len({name for name, _ in caller.outcomes}) == len(HOSTILE)
    counted = scrape(started["metrics_address"])
    assert not target.has_ended

    def count(name: str, reason: str) -> float:
        return counted[f"relayswarm_peer_{name}_total", (("reason", reason),)]

    each = CALLS // len(HOSTILE)
    for reason in ("malformed", "method", "run", "forgotten"):
        assert count("calls_denied", reason) >= each, reason
    for reason in ("stale_step", "foreign_run", "not_a_neighbour", "bad_count", "bad_length"):
        assert count("messages_refused", reason) >= each, reason
    assert target.log.count("refused") < 20  # of hundreds
