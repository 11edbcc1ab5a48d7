"""An etcd of the tests' own, on loopback."""

from __future__ import annotations

import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from systemtests.prometheus import until
from tests.daemon.wires import free_port


@contextmanager
def running_etcd(folder: Path) -> Iterator[str]:
    """Its address for clients."""
    client, peer = (f"127.0.0.1:{free_port()}" for _ in range(2))
    command = ["etcd", "--data-dir", str(folder / "data")]
    for option, address in (
        ("listen-client-urls", client),
        ("advertise-client-urls", client),
        ("listen-peer-urls", peer),
        ("initial-advertise-peer-urls", peer),
    ):
        command += [f"--{option}", f"http://{address}"]
    command += ["--initial-cluster", f"default=http://{peer}"]
    with (folder / "etcd.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        until(lambda: _is_healthy(client), "etcd answers", 30.0, 0.1)
        yield client
    finally:
        process.kill()
        process.wait()


def _is_healthy(address: str) -> bool:
    with urllib.request.urlopen(f"http://{address}/health", timeout=5) as answer:
        return b"true" in answer.read()
