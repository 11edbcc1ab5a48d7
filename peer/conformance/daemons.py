"""Whether real daemons end with the simulator's models, bit for bit.

The daemons are processes of their own, so they find the algorithm as they would an installed one:
for the time of the check a distribution that offers it stands on the path.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from peer.algorithms.core import Algorithm
from peer.config import OFFERS, check_algorithm
from peer.localswarm.swarm import CONFIG, LOGS, STATE, LocalCommands, LocalSwarm
from peer.outcome import PeerOutcome
from peer.simulator.run import simulate
from peer.views import peer_ids
from relayswarm.config import RunConfig, validate
from relayswarm.errors import RelayswarmError

NAME = "algorithm-under-test"
STEPS = 10
PATIENCE_S = 300.0  # with the whole swarm of daemons, on a machine that does other things too


def check_daemons(cls: type[Algorithm], options: Mapping[str, Any], peers: int) -> None:
    """Let `peers` daemons and the simulator learn the same. Raises AssertionError."""
    with tempfile.TemporaryDirectory() as folder, _offered(cls, Path(folder)) as directory:
        config = _config(options, peers)
        check_algorithm(config)
        finished = _run(config, directory)
        for simulated in simulate(config, None, lambda _: None).peers:
            _compare(simulated, finished[simulated.id], directory)


def _config(options: Mapping[str, Any], peers: int) -> RunConfig:
    return validate(
        {
            "peers": peers,
            "steps": STEPS,
            "deterministic": True,
            "task": {"name": "quadratics", "options": {"gradient_noise": 0.5}},
            "algorithm": {"name": NAME, "options": dict(options)},
            "topology": {"graph": "ring" if peers > 2 else "chain"},
            "transport": {"deadline_s": PATIENCE_S, "linger_s": PATIENCE_S},
        }
    )


def _run(config: RunConfig, directory: Path) -> dict[str, Mapping[str, Any]]:
    """The `peer_finished` events of all daemons."""
    for name in (LOGS, STATE):
        (directory / name).mkdir()
    (directory / CONFIG).write_text(config.to_toml(), encoding="utf-8")
    commands = LocalCommands(directory, "cpu", None, config)
    with LocalSwarm(commands, peer_ids(config.peers), directory / LOGS) as swarm:
        swarm.start()
        try:
            return dict(_finished(swarm, time.monotonic() + PATIENCE_S))
        except RelayswarmError as error:
            raise AssertionError(f"daemons: {error}") from error


def _finished(swarm: LocalSwarm, until: float) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for event in swarm.events():
        if event and event["event"] in ("peer_exited", "coordinator_exited"):
            who, words = event.get("peer", "the coordinator"), "\n".join(event["stderr"])
            raise AssertionError(f"daemons: {who} ended before its time:\n{words}")
        if event and event["event"] == "peer_finished":
            yield event["peer"], event
        if time.monotonic() > until:
            raise AssertionError(f"daemons: they have not finished in {PATIENCE_S:g} s")


def _compare(simulated: PeerOutcome, finished: Mapping[str, Any], directory: Path) -> None:
    peer = simulated.id
    for field in ("messages_expected", "messages_missed"):
        expected, found = getattr(simulated, field), finished[field]
        if found != expected:
            problem = f"{field} of the daemon {peer} are {found}, in the simulator {expected}"
            raise AssertionError(f"daemons: {problem}")
    model = load_file(directory / STATE / peer / "model.safetensors")
    assert simulated.model is not None, f"the simulated {peer} has not finished"
    for name, tensor in simulated.model.items():
        if not torch.equal(model[name], tensor):
            distance = float((model[name] - tensor).abs().max())
            raise AssertionError(
                f"daemons: {name} of {peer} differs from the simulator's by up to {distance:g}"
            )


@contextmanager
def _offered(cls: type[Algorithm], folder: Path) -> Iterator[Path]:
    """Offer the class under `NAME`, here and in processes started from here."""
    information = folder / "site" / "under_test-0.dist-info"
    information.mkdir(parents=True)
    metadata = "Metadata-Version: 2.1\nName: under-test\nVersion: 0\n"
    (information / "METADATA").write_text(metadata, encoding="utf-8")
    entry = f"[{OFFERS.group}]\n{NAME} = {cls.__module__}:{cls.__qualname__}\n"
    (information / "entry_points.txt").write_text(entry, encoding="utf-8")
    path, inherited = list(sys.path), os.environ.get("PYTHONPATH")
    sys.path.insert(0, str(information.parent))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    try:
        yield folder
    finally:
        sys.path[:] = path
        os.environ.pop("PYTHONPATH")
        if inherited is not None:
            os.environ["PYTHONPATH"] = inherited
