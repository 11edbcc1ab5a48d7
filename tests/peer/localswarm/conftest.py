from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

HEAD = """
import json, os, signal, sys

def say(event, **fields):
    print(json.dumps({"event": event, **fields}), flush=True)

def step(number, loss=0.5, peer=None):
    say("step", peer=peer or me, step=number, loss=loss, models_counted=2, swarm_size=2, missed=0,
        late=0, compute_s=0.0, wait_s=0.0, bytes_sent=10)

def finish(model=None):
    say("peer_finished", peer=me, steps=2, metrics={"loss": 0.25}, messages_sent=2,
        messages_expected=2, messages_missed=0, bytes_sent=20, shard=0, shard_digest="", notes=[],
        model=model)

def topology(*members):
    say("topology", epoch={"term": 1, "number": 1}, root=members[0], members=list(members),
        edges=[list(pair) for pair in zip(members, members[1:])],
        trees=[[list(pair) for pair in zip(members, members[1:])]], reason="quorum",
        effective_step=0, graph_edges=[], lr_factor="1", diameter=len(members) - 1)

def wait_to_be_ended():
    sys.stdin.read()

me, coordinator = sys.argv[1:]
"""


class Scripts:
    """The commands of a swarm that is made of small scripts in place of the real thing.

    A script knows `me` and the `coordinator`'s address, and how to `say` events.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        # The topology first: a peer that ends before it is out ends the run.
        self.coordinator_script = """
            topology("peer-0", "peer-1")
            say("coordinator_started", pid=os.getpid(), address="here:1", metrics_address="")
            wait_to_be_ended()
        """
        self.peer_scripts: dict[str, str] = {}
        self.any_peer = """
            say("peer_started", peer=me, pid=os.getpid(), address="", metrics_address="")
            step(0)
            step(1)
            finish()
        """

    def coordinator(self) -> Sequence[str]:
        return self._command("coordinator", self.coordinator_script, "")

    def peer(self, peer: str, coordinator: str) -> Sequence[str]:
        return self._command(peer, self.peer_scripts.get(peer, self.any_peer), coordinator)

    def _command(self, name: str, script: str, coordinator: str) -> list[str]:
        path = self._folder / f"{name}.py"
        path.write_text(HEAD + textwrap.dedent(script))
        return [sys.executable, "-S", str(path), name, coordinator]


@pytest.fixture
def scripts(tmp_path: Path) -> Scripts:
    folder = tmp_path / "scripts"
    folder.mkdir()
    return Scripts(folder)


@pytest.fixture
def script_command(tmp_path: Path) -> Callable[[str], list[str]]:
    """From the text of a Python script to the command that runs it."""

    def command(text: str) -> list[str]:
        path = tmp_path / "script.py"
        path.write_text(textwrap.dedent(text))
        return [sys.executable, str(path)]

    return command
