"""Six sites, each in a network of its own, of which five let nothing in. `make test-dial-only`.

A bridge joins six network namespaces; the coordinator is in a seventh. iptables drops what others
begin toward sites 1 to 5, whose peers can only dial out. The run goes once more without firewalls,
with all ports open: the models must be the same, bit for bit, and the steps as fast. For that the
models have 1 MB, and computation is emulated by a sleep: six sites share one machine. Needs root.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.step_overhead import offer_task
from systemtests.switched import inside, run, switched

SITES = 6
SWITCH = f"rs-{os.getpid()}-switch"
SWITCH_IP, PORT = "10.205.0.1", 50050
NETWORKS = [f"rs-{os.getpid()}-site{k}" for k in range(SITES)]
ADDRESSES = [f"10.205.0.{k + 2}" for k in range(SITES)]
RELAYSWARM = (sys.executable, "-m", "peer.cli")
STEPS, WARM_UP = 200, 30
RUN = (
    *("run_id=sites", "deterministic=true", f"peers={SITES}", "topology.graph=star"),
    *(f"steps={STEPS}", "evaluation.every=1000"),
    *("transport.deadline_s=100", "transport.linger_s=30"),
)
DIGITS = ("task.name=digits", "data.batch_size=8")
EMULATED = (
    *("task.name=emulated", "optimizer.momentum=0.0"),
    *("task.options.elements=250000", "task.options.sleep_s=0.05"),
)
PAIRS = 3
LEAST = 0.9
PATIENCE_S = 240.0

pytestmark = pytest.mark.timeout(1800)


@pytest.fixture
def networks() -> Iterator[None]:
    with switched(SWITCH, SWITCH_IP, dict(zip(NETWORKS, ADDRESSES, strict=True))):
        yield


def firewalls(do: str) -> None:
    """`-A`: sites 1 to 5 let nobody begin a connection; `-D`: as before."""
    rule = ("INPUT", "-i", "eth0", "-m", "conntrack", "--ctstate", "NEW", "-j", "DROP")
    for namespace in NETWORKS[1:]:
        run(*inside(namespace, "iptables", do, *rule))


def swarm(
    folder: Path, task: tuple[str, ...], *, dial_only: bool
) -> tuple[list[dict[str, Tensor]], float]:
    """All sites' models at the end of a run, and steps per second after the first few."""
    times: dict[int, float] = {}

    def listen(process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            event = json.loads(line)
            if event["event"] == "step":
                times[event["step"]] = time.monotonic()

    folder.mkdir()
    with ExitStack() as stack:

        def start(namespace: str, name: str, *words: str) -> subprocess.Popen[str]:
            log = stack.enter_context((folder / f"{name}.log").open("w"))
            process = stack.enter_context(
                subprocess.Popen(
                    inside(namespace, *RELAYSWARM, *words, "--json", "--insecure"),
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": packages},
                )
            )
            stack.callback(process.kill)
            return process

        packages = offer_task(folder)
        flags = [f"--set={one}" for one in (*RUN, *task)]
        at = f"{SWITCH_IP}:{PORT}"
        coordinator = start(SWITCH, "coordinator", "coordinator", "--listen", at, *flags)
        threading.Thread(target=coordinator.communicate, daemon=True).start()
        sites = []
        for k, (namespace, address) in enumerate(zip(NETWORKS, ADDRESSES, strict=True)):
            own = ("--id", f"peer-{k}", "--state-dir", str(folder / f"peer-{k}"))
            hidden = dial_only and k > 0
            way = ("--reachability", "dial-only") if hidden else ("--listen", f"{address}:50051")
            own += ("--allow-task", "emulated")
            sites.append(start(namespace, f"peer-{k}", "peer", "--coordinator", at, *own, *way))
        readers = [threading.Thread(target=listen, args=(site,)) for site in sites[:1]]
        readers += [threading.Thread(target=site.communicate) for site in sites[1:]]
        for reader in readers:
            reader.start()
        for k, site in enumerate(sites):
            assert site.wait(PATIENCE_S) == 0, (folder / f"peer-{k}.log").read_text()
        for reader in readers:
            reader.join()
    models = [load_file(folder / f"peer-{k}" / "model.safetensors") for k in range(SITES)]
    return models, (STEPS - 1 - WARM_UP) / (times[STEPS - 1] - times[WARM_UP])


def both(folder: Path, task: tuple[str, ...]) -> float:
    """Run behind firewalls and without; the models are the same. Returns the ratio of rates."""
    folder.mkdir()
    firewalls("-A")
    behind, rate = swarm(folder / "behind", task, dial_only=True)
    firewalls("-D")
    open_, open_rate = swarm(folder / "open", task, dial_only=False)
    for site, (theirs, ours) in enumerate(zip(open_, behind, strict=True)):
        assert theirs.keys() == ours.keys()
        assert all(torch.equal(theirs[name], ours[name]) for name in ours), f"site {site}"
    told = f"{rate:.1f} steps/s behind firewalls, {open_rate:.1f} without"
    print(f"{task[0]}: {told}: {rate / open_rate:.2f}")  # noqa: T201
    return rate / open_rate


@pytest.mark.usefixtures("networks")
def test_five_of_six_sites_let_nothing_in(tmp_path: Path) -> None:
    both(tmp_path / "digits", DIGITS)
    ratios = [both(tmp_path / f"emulated-{pair}", EMULATED) for pair in range(PAIRS)]
    assert median(ratios) >= LEAST, ratios


@pytest.mark.usefixtures("networks")
def test_a_site_behind_a_firewall_that_claims_a_port_is_told(tmp_path: Path) -> None:
    """And the firewalls are real: nobody answers when the coordinator calls back."""
    firewalls("-A")
    at = f"{SWITCH_IP}:{PORT}"
    command = inside(SWITCH, *RELAYSWARM, "coordinator", "--insecure", "--listen", at)
    with (tmp_path / "log").open("w") as log:
        coordinator = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        words = ("peer", "--insecure", "--coordinator", at, "--listen", f"{ADDRESSES[1]}:50051")
        site = subprocess.run(
            inside(NETWORKS[1], *RELAYSWARM, *words), capture_output=True, text=True, timeout=120
        )
    finally:
        coordinator.kill()
        coordinator.wait()
    assert site.returncode == 3, site.stderr
    assert "when the coordinator calls back nobody answers there" in site.stderr
