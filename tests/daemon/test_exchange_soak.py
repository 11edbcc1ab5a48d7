"""Kills of peers at random moments of exchanges: nobody else stops, and nothing is averaged that
nobody sent.

A slice runs with the other tests; `make soak-exchange` has 200 kills. SOAK_SEED repeats a failure.
"""

from __future__ import annotations

import math
import os
import random
import re
import signal
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from peer.transport.read_model import read_model
from tests.daemon.conftest import LIMIT_S

KILLS = int(os.environ.get("SOAK_KILLS", "2"))
SEED = int(os.environ.get("SOAK_SEED", "1"))
PEERS = 4
LONGEST_S = 0.3  # between the first step of a peer that came back and the next kill
STALL_S = 30.0

SETTINGS = (
    "task.name=theirs",
    "data.batch_size=4",
    f"peers={PEERS}",
    "steps=1000000",
    "topology.graph=complete",
    "algorithm.name=swarmsgd",
    "algorithm.quantize=lattice",
    "optimizer.lr=0.01",
    "checkpoint.every=0",
    "transport.linger_s=0",
)
NEVER = ("checksum", "not_finite", "bad_length", "bad_count", "version", "foreign_run")
"""Refusals that would mean that something came in as nobody sent it."""


def scrape(address: str, name: str, label: str) -> dict[str, float]:
    """A counter's values by one of its labels, from a peer's metrics."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as response:
        text = response.read().decode()
    rows = re.findall(rf'^{name}{{.*?{label}="([a-z_]+)".*?}} (\S+)$', text, re.MULTILINE)
    found: dict[str, float] = {}
    for value, count in rows:
        found[value] = found.get(value, 0.0) + float(count)
    return found


@pytest.mark.timeout(LIMIT_S + 20 * KILLS)
def test_kills_at_any_moment_of_an_exchange_stop_nobody_else(
    daemons: Callable[..., Any],
    install: Callable[[int], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    theirs = install(6000)  # 450,010 parameters: two chunks in full precision
    monkeypatch.syspath_prepend(str(theirs))
    draw = random.Random(SEED)
    swarm = daemons(*SETTINGS, path=[theirs], flags=("--metrics-listen", "127.0.0.1:0"))
    for process in swarm.peers.values():
        process.until_step(1)
    ended: dict[str, float] = {}
    for kill in range(KILLS):
        where = f"SOAK_SEED={SEED}, kill {kill}"
        time.sleep(draw.uniform(0, LONGEST_S))  # the moment itself, not a wait for anything
        victim = draw.choice(sorted(swarm.peers))
        before = {peer: process.step() for peer, process in swarm.peers.items()}
        swarm.peers[victim].send(signal.SIGKILL)
        assert swarm.peers[victim].exit_code() == -signal.SIGKILL, where
        swarm.add(victim, "--allow-task", "theirs", path=[theirs]).until_step(0)
        deadline = time.monotonic() + STALL_S
        for peer, process in swarm.peers.items():
            while process.step() <= before[peer] and peer != victim:
                assert time.monotonic() < deadline, f"{where}: {peer} stands still; {process}"
                time.sleep(0.01)  # its events come in another thread
            assert not process.has_ended, f"{where}: {process}"
    for process in swarm.peers.values():
        started = process.until("peer_started")
        model = read_model(started["address"]).vector
        assert model.isfinite().all(), f"SOAK_SEED={SEED}"
        assert float(model.abs().max()) < 100, f"SOAK_SEED={SEED}: {process.name} is far off"
        losses = [event["loss"] for event in process.events("step")]
        assert all(loss is not None and math.isfinite(loss) for loss in losses), f"SOAK_SEED={SEED}"
        refused = scrape(
            started["metrics_address"], "relayswarm_peer_messages_refused_total", "reason"
        )
        assert not any(refused[reason] for reason in NEVER), f"SOAK_SEED={SEED}: {refused}"
        outcomes = scrape(started["metrics_address"], "relayswarm_exchanges_total", "outcome")
        for outcome, count in outcomes.items():
            ended[outcome] = ended.get(outcome, 0) + count
    assert ended["both"] > 0
    print(f"SOAK_SEED={SEED}: {KILLS} kills; exchanges of the last lives: {ended}")  # noqa: T201
