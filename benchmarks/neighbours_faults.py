"""What befalls eight workers when one dies, hangs, or loses its centre: here and next door.

    python benchmarks/neighbours_faults.py [relayswarm] [gloo]

- relayswarm: a coordinator and eight peers, RelaySGD, with the deadline (30 s) and the lease (10 s)
  that they have without a config.
- gloo: eight processes of `torch.distributed`, which average their models by `all_reduce` in each
  step; patience 30 s, too. Its centre is the process that holds the rendezvous store.

All train the same model (the `digits` task's) by the same steps, each of which takes at least
50 ms. After ten seconds a fault: one worker killed (SIGKILL), one stopped for eight seconds
(SIGSTOP), or the centre killed; no worker is in the centre. What the others do is watched for 45 s.
Prints JSON: how many of the others are still at work in the end, the longest pause of any of them,
and their steps a second before and in the end.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import platform
import signal
import socket
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed

from peer.cli import main as command
from peer.tasks.digits import Digits
from peer.training.trainer import Trainer, make_site
from relayswarm.config import parse

WORKERS = 8
STEP_S = 0.05
PATIENCE_S = 30.0
START_S = 120.0
BEFORE_S, AFTER_S, STOPPED_S = 10.0, 45.0, 8.0
IN_THE_END_S = 10.0
FAULTS = ("worker killed", "worker stopped", "centre killed")
VICTIM = 3
CONFIG = parse(
    "",
    [
        *("task.name=digits", "data.batch_size=32", "data.alpha=1.0", f"peers={WORKERS}"),
        *("seed=1", "topology.graph=random-regular", "steps=1000000"),
        f"faults.delay_s={STEP_S}",
    ],
)


@dataclass
class Worker:
    """A process that says in a line of JSON when it has done a step."""

    process: Any  # of multiprocessing, forked: importing torch takes a busy machine long
    output: int
    steps: list[float] = field(default_factory=list)  # when they were done

    def listen(self) -> None:
        """Read what it says until it ends."""
        with open(self.output, encoding="utf-8") as lines:
            for line in lines:
                if line.startswith("{") and json.loads(line)["event"] == "step":
                    self.steps.append(time.monotonic())


class Workers:
    """Eight of them and a centre, of one system."""

    def __init__(self, system: str, folder: Path) -> None:
        self._folder = folder
        port = free_port()
        begin = self._relayswarm if system == "relayswarm" else self._gloo
        self.centre, self.workers = begin(port)  # all forked before there is any thread
        self._listeners = [
            threading.Thread(target=worker.listen) for worker in (self.centre, *self.workers)
        ]
        for listener in self._listeners:
            listener.start()

    def stop(self) -> None:
        """End them all."""
        for worker in (*self.workers, self.centre):
            worker.process.kill()
            worker.process.join()
        for listener in self._listeners:
            listener.join()

    def _relayswarm(self, port: int) -> tuple[Worker, list[Worker]]:
        config = self._folder / "run.toml"
        config.write_text(CONFIG.to_toml())
        at = f"127.0.0.1:{port}"
        web = ("--metrics-listen", "127.0.0.1:0", "--json")
        centre = self._start(
            command, ["coordinator", "--config", str(config), "--listen", at, *web]
        )
        return centre, [
            self._start(
                command,
                [
                    *("peer", "--coordinator", at, "--id", f"peer-{k}", *web),
                    *("--state-dir", str(self._folder / f"peer-{k}")),
                ],
            )
            for k in range(WORKERS)
        ]

    def _gloo(self, port: int) -> tuple[Worker, list[Worker]]:
        centre = self._start(gloo_centre, port)
        return centre, [self._start(gloo_worker, port, rank) for rank in range(WORKERS)]

    def _start(self, role: Callable[..., None], *arguments: Any) -> Worker:
        output, given = os.pipe()
        os.set_inheritable(given, True)

        def run() -> None:
            os.dup2(given, 1)
            with (self._folder / "log").open("a") as log:
                os.dup2(log.fileno(), 2)
            torch.set_num_threads(1)
            role(*arguments)

        process = multiprocessing.get_context("fork").Process(target=run)
        process.start()
        os.close(given)
        return Worker(process, output)


def measure(system: str, fault: str) -> dict[str, Any]:
    """One run with one fault."""
    with tempfile.TemporaryDirectory() as folder:
        swarm = Workers(system, Path(folder))
        try:
            return observe(swarm, system, fault)
        finally:
            swarm.stop()


def observe(swarm: Workers, system: str, fault: str) -> dict[str, Any]:
    deadline = time.monotonic() + START_S
    while not all(len(worker.steps) >= 10 for worker in swarm.workers):
        assert time.monotonic() < deadline, f"{system} does not start"
        time.sleep(0.1)
    time.sleep(BEFORE_S)
    at = time.monotonic()
    others = [w for k, w in enumerate(swarm.workers) if k != VICTIM or fault == "centre killed"]
    victim = swarm.centre if fault == "centre killed" else swarm.workers[VICTIM]
    if fault == "worker stopped":
        os.kill(victim.process.pid, signal.SIGSTOP)
        time.sleep(STOPPED_S)
        os.kill(victim.process.pid, signal.SIGCONT)
    else:
        victim.process.kill()
    ended_at: dict[int, float] = {}
    while (end := time.monotonic()) < at + AFTER_S:
        for k, worker in enumerate(others):
            if not worker.process.is_alive():
                ended_at.setdefault(k, end)
        time.sleep(0.05)
    at_work = [w for w in others if w.process.is_alive() and w.steps[-1] > end - IN_THE_END_S]
    pauses = [pause(worker.steps, at, end) for worker in others]
    return {
        "system": system,
        "fault": fault,
        "others": len(others),
        "at_work": len(at_work),
        "ended": len(ended_at),
        "last_ended_after_s": round(max(ended_at.values()) - at, 2) if ended_at else None,
        "longest_pause_s": round(max(pauses), 2),
        "steps_per_s_before": rate(others, at - BEFORE_S, at),
        "steps_per_s_in_the_end": rate(others, end - IN_THE_END_S, end),
    }


def pause(steps: list[float], at: float, end: float) -> float:
    """The longest time without a step, from the last one before the fault on."""
    before = max(t for t in steps if t <= at)
    times = [before, *(t for t in steps if at < t <= end), end]
    return max(b - a for a, b in pairwise(times))


def rate(workers: list[Worker], begin: float, end: float) -> float:
    """Steps a second of the median worker."""
    counts = [sum(begin < t <= end for t in worker.steps) for worker in workers]
    return round(statistics.median(counts) / (end - begin), 1)


def free_port() -> int:
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as server:
        return int(server.getsockname()[1])


# --- what the processes do ------------------------------------------------------------------------


def gloo_centre(port: int) -> None:
    store = distributed.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)
    signal.pause()
    del store


def gloo_worker(port: int, rank: int) -> None:
    patience = timedelta(seconds=PATIENCE_S)
    store = distributed.TCPStore("127.0.0.1", port, is_master=False, timeout=patience)
    distributed.init_process_group(
        "gloo", store=store, rank=rank, world_size=WORKERS, timeout=patience
    )
    for vector in trained(rank):
        distributed.all_reduce(vector)
        vector /= WORKERS
        print(json.dumps({"event": "step"}), flush=True)


def trained(rank: int) -> Iterator[Tensor]:
    """The model's vector after each step on a shard of the digits, for ever."""
    trainer = Trainer(Digits(), CONFIG, make_site(CONFIG, rank))
    for step in count():
        trainer.train(step)
        time.sleep(STEP_S)
        yield trainer.flat.vector


def main() -> None:
    systems = sys.argv[1:] or ["relayswarm", "gloo"]
    rows = [measure(system, fault) for system in systems for fault in FAULTS]
    figures = {
        "machine": f"{os.cpu_count()} cores, {platform.machine()}",
        "load": round(os.getloadavg()[0], 1),
        "date": time.strftime("%Y-%m-%d"),
        "rows": rows,
    }
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
