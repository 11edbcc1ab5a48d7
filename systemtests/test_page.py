"""The coordinator's page in a real browser, with real peers. `make test-page` runs this."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

PATIENCE_S = 90.0
PEERS = 3
RELAYSWARM = (sys.executable, "-m", "peer.cli")
CHROMIUM = ("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=3000")


@pytest.fixture
def page() -> Iterator[str]:
    """Address of the page of a coordinator whose peers train."""
    with ExitStack() as stack:

        def start(*arguments: str) -> subprocess.Popen[str]:
            command = (*RELAYSWARM, *arguments, "--json")
            process = stack.enter_context(
                subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            )
            stack.callback(process.kill)
            return process

        settings = ("--set", f"peers={PEERS}", "--set", "steps=100000")
        coordinator = start(
            "coordinator", "--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0", *settings
        )
        assert coordinator.stdout
        started = json.loads(coordinator.stdout.readline())
        for _ in range(PEERS):
            start("peer", "--coordinator", started["address"])
        root = f"http://{started['metrics_address']}"
        await_training(root)
        yield root


def await_training(root: str) -> None:
    """Until every peer has made a step; how long one asks is bounded by the deadline."""
    deadline = time.monotonic() + PATIENCE_S
    while not all_train(status(root)):
        assert time.monotonic() < deadline, status(root)


def status(root: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{root}/status.json", timeout=20.0) as response:
        answer: dict[str, Any] = json.load(response)
    return answer


def all_train(answer: dict[str, Any]) -> bool:
    members = answer["members"]
    return len(members) == PEERS and all(member["step"] > 0 for member in members)


def test_the_page_shows_the_run(page: str) -> None:
    dom = subprocess.run(
        (*CHROMIUM, "--dump-dom", page), capture_output=True, text=True, timeout=60, check=True
    ).stdout
    assert dom.count("<circle") == PEERS
    assert dom.count("<line") == PEERS - 1
    rows = re.findall(r"<td>(peer-\d)</td><td>(\w+)</td>", dom)
    assert [peer for peer, _ in rows] == [f"peer-{i}" for i in range(PEERS)]
    assert {state for _, state in rows} <= {"training", "averaging"}
    assert "epoch" in dom
    assert "quorum" in dom
    assert f"peers = {PEERS}" in dom
