"""What a run was made of: everything one needs to judge its numbers, or to make them again."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import relayswarm
from peer.model_files import fingerprint_text
from peer.outcome import RunOutcome
from peer.report_files import SCHEMA_VERSION

PACKAGES = ("torch", "grpcio", "protobuf", "numpy", "networkx")


def manifest(
    outcome: RunOutcome, command: Sequence[str], fingerprint: int | None = None
) -> dict[str, Any]:
    """The manifest of a run that just ended, as JSON values.

    The resolved config, the model's fingerprint, versions, seed, shard digests (equal digests:
    equal data), hardware, date (UTC), the command, the epochs of topology, and what peers remarked
    or died of.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "run_id": outcome.config.run_id,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": list(command),
        "engine": "processes" if outcome.simulation is None else "simulator",
        "config": outcome.config.model_dump(mode="json"),
        "model_fingerprint": None if fingerprint is None else fingerprint_text(fingerprint),
        "seed": outcome.config.seed,
        "versions": versions(),
        "hardware": hardware(),
        "shards": [
            {"peer": peer.id, "shard": peer.shard, "digest": peer.shard_digest}
            for peer in outcome.peers
        ],
        "notes": {peer.id: list(peer.notes) for peer in outcome.peers if peer.notes},
        "topologies": [_without_name(topology) for topology in outcome.topologies],
        "lost_peers": [asdict(lost) for lost in outcome.lost],
    }


def _without_name(event: Any) -> dict[str, Any]:
    return {key: value for key, value in event.items() if key != "event"}


def versions() -> dict[str, str]:
    """Of this program, Python and the packages that results depend on."""
    ours = {"relayswarm": relayswarm.__version__, "python": platform.python_version()}
    return ours | {package: version(package) for package in PACKAGES}


def hardware() -> dict[str, Any]:
    """Of this machine: operating system, CPU, cores that may be used, memory, GPUs."""
    return {
        "system": platform.platform(),
        "cpu": _cpu_name(),
        "cores": _cores(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpus": [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())],
    }


def _cores() -> int:
    """Those that this process may use, where the system can tell."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu_name() -> str:
    """As the kernel calls it; platform's own answer is empty on many Linux systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
