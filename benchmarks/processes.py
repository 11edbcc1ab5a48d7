"""A swarm of processes of this machine, for benchmarks that watch its events."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peer.localswarm.swarm import CONFIG, LOGS, LocalCommands, LocalSwarm
from peer.views import peer_ids
from relayswarm.config import RunConfig


def events_of(config: RunConfig) -> Iterator[dict[str, Any]]:
    """Run the swarm to its end, on the CPU."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / LOGS).mkdir()
        (directory / CONFIG).write_text(config.to_toml())
        commands = LocalCommands(directory, "cpu", None, config)
        with LocalSwarm(commands, peer_ids(config.peers), directory / LOGS) as swarm:
            swarm.start()
            yield from (event for event in swarm.events() if event is not None)
