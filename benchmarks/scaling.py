"""Time per batch against the number of peers, where computation is a sleep: the paper's figure 5.

    python benchmarks/scaling.py                         4, 8, 16 and 32 peers, five methods
    python benchmarks/scaling.py --peers 4 8 --steps 6   less of it

The peers are daemons' own parts (core loop, training thread, outbox, server) that talk gRPC over
loopback, all in one process: 32 processes would need more memory and time to start than what is
measured. A batch is a sleep of `--sleep` seconds and leaves the model, that of `digits`, as it is;
each batch is followed by the method's exchange. What is left is what the method's waiting costs,
and the work of this machine's cores for so many peers: the processor seconds for each second say
how much that is, and where they come near the number of cores, cores decide.

Partners of swarmsgd and adpsgd are drawn from all peers, dpsgd's neighbours are a ring's, sgp has
its own exponential graph, allreduce a binary tree. Methods take turns. A figure is the median over
the peers of (time of the last step - time of the first) / steps between, of `--turns` turns the
median. Prints a table, and writes JSON and a plot (`--output`). Says whether swarmsgd is flat
within 10 %: by the largest ratio to the fewest peers.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from coordinator.views import lay_out
from peer.algorithms.core import View
from peer.announce import Announcer
from peer.checkpoints import Checkpoints
from peer.config import build_algorithm
from peer.daemon import Daemon
from peer.metrics import PeerMetrics
from peer.parts import contract_of
from peer.tasks.digits import Digits
from peer.training.trainer import Trainer, make_site
from peer.training_thread import TrainingThread
from peer.transport.client import Exchanges, Outbox
from peer.transport.server import PeerServer
from peer.transport.visits import Visits
from peer.views import peer_ids, views_of
from relayswarm.config import RunConfig, parse

GRAPHS = {
    "swarmsgd": "complete",
    "adpsgd": "complete",
    "dpsgd": "ring",
    "sgp": "complete",
    "allreduce": "binary-tree",
}
PEERS = (4, 8, 16, 32)
FLAT = 1.10
PATIENCE_S = 300.0
GRACE_S = 1.0  # for messages under way

Row = dict[str, Any]


class Sleeping(Digits):
    """Takes so long for a batch, and learns nothing."""

    def __init__(self, sleep_s: float) -> None:
        super().__init__()
        self.sleep_s = sleep_s

    def gradients(self, module: nn.Module, batch: Any) -> tuple[Tensor, list[Tensor]]:  # noqa: ARG002
        time.sleep(self.sleep_s)
        return torch.zeros(()), [torch.zeros_like(p) for p in module.parameters()]


class StepTimes(Announcer):
    """When each step of a peer was done."""

    def __init__(self) -> None:
        super().__init__(speaks=False)
        self.at: list[float] = []

    def __call__(self, event: str, **fields: Any) -> None:  # noqa: ARG002
        if event == "step":
            self.at.append(time.perf_counter())

    @property
    def seconds(self) -> float:
        """Of a step; the first is left out, in which connections are made."""
        return (self.at[-1] - self.at[0]) / (len(self.at) - 1)


class Member:
    """One peer: as `peer.parts.Parts`, without a coordinator to ask."""

    def __init__(self, view: View, shard: int, config: RunConfig, sleep_s: float) -> None:
        self.times = StepTimes()
        metrics, site = PeerMetrics(), make_site(config, shard)
        trainer = Trainer(Sleeping(sleep_s), config, site)
        checkpoints = Checkpoints(None, trainer, metrics, view.me)
        algorithm = build_algorithm(config)
        self.daemon = Daemon(
            view.me, algorithm, trainer, checkpoints, metrics, self.times, TrainingThread
        )
        self.view, visits = view, Visits()
        contract = contract_of(config, trainer)
        pairs = Exchanges(self.daemon, visits)
        self.outbox = Outbox(view.me, contract, None, self.daemon, exchanges=pairs)
        self.daemon.outbox = self.outbox
        self.server = PeerServer(self.daemon, contract, "127.0.0.1:0", visits=visits)
        self.server.start()
        self._core = ThreadPoolExecutor(1)

    def begin(self) -> None:
        self.daemon.viewed(self.view)
        self._ended = self._core.submit(self.daemon.run)

    def end(self) -> None:
        """Wait for the last step."""
        self._ended.result(PATIENCE_S)

    def close(self) -> None:
        self.daemon.stop()  # where another peer failed
        self._core.shutdown()
        self.daemon.close()
        self.outbox.close(GRACE_S)


def measure(method: str, peers: int, steps: int, sleep_s: float) -> Row:
    """Seconds per batch (median of the peers), and processor seconds of all peers per second."""
    settings = (
        *("task.name=digits", f"algorithm.name={method}", f"topology.graph={GRAPHS[method]}"),
        *(f"peers={peers}", f"steps={steps}", "transport.deadline_s=100", "optimizer.lr=0.1"),
    )
    config = parse("", settings)
    views = list(views_of(lay_out(config, peer_ids(peers)), correct_lr=True))
    with ExitStack() as stack:
        members = []
        for shard, view in enumerate(views):
            members.append(Member(view, shard, config, sleep_s))
            stack.callback(members[-1].server.stop, GRACE_S)
        for member in members:  # all before the first server stops
            stack.callback(member.close)
        addresses = {member.view.me: member.server.address for member in members}
        for member in members:
            others = {peer: at for peer, at in addresses.items() if peer != member.view.me}
            member.outbox.set_addresses(others)
        clock, processor = time.perf_counter(), time.process_time()
        for member in members:
            member.begin()
        for member in members:
            member.end()
        busy = (time.process_time() - processor) / (time.perf_counter() - clock)
    seconds = statistics.median(member.times.seconds for member in members)
    return {"method": method, "peers": peers, "seconds_per_batch": seconds, "cores_busy": busy}


def table(rows: Sequence[Row]) -> list[Row]:
    """The medians over the turns, each beside the same method with the fewest peers."""
    taken: dict[tuple[str, int], list[Row]] = defaultdict(list)
    for row in rows:
        taken[row["method"], row["peers"]].append(row)
    figures = ("seconds_per_batch", "cores_busy")
    medians = [
        {"method": method, "peers": peers}
        | {name: statistics.median(row[name] for row in turns) for name in figures}
        for (method, peers), turns in taken.items()
    ]
    fewest = min(row["peers"] for row in medians)
    base = {r["method"]: r["seconds_per_batch"] for r in medians if r["peers"] == fewest}
    return [row | {"ratio": row["seconds_per_batch"] / base[row["method"]]} for row in medians]


def verdict(medians: Sequence[Row]) -> str:
    largest = max(row["ratio"] for row in medians if row["method"] == "swarmsgd")
    word = "met" if largest <= FLAT else "MISSED"
    return f"swarmsgd flat within 10 %: {word} (largest ratio {largest:.3f})"


def plot(medians: Sequence[Row], sleep_s: float, path: Path) -> None:
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for method in dict.fromkeys(row["method"] for row in medians):
        own = [row for row in medians if row["method"] == method]
        peers = [row["peers"] for row in own]
        axes.plot(peers, [row["seconds_per_batch"] for row in own], marker="o", label=method)
    axes.axhline(sleep_s, color="grey", linestyle=":", label="computation alone")
    axes.set_xscale("log", base=2)
    axes.set(xlabel="peers", ylabel="seconds per batch", ylim=(0, None))
    axes.legend()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peers", type=int, nargs="+", default=PEERS)
    parser.add_argument("--methods", nargs="+", choices=list(GRAPHS), default=list(GRAPHS))
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--sleep", type=float, default=2.0, help="of a batch, seconds")
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--output", type=Path, help="where to write JSON; the plot beside it, .png")
    given = parser.parse_args()
    rows = [
        measure(method, peers, given.steps, given.sleep)
        for _ in range(given.turns)
        for peers in given.peers
        for method in given.methods
    ]
    medians = table(rows)
    print(f"{'method':12}{'peers':>6}{'s / batch':>12}{'ratio':>8}{'cores busy':>12}")
    for row in sorted(medians, key=lambda row: (row["method"], row["peers"])):
        print(
            f"{row['method']:12}{row['peers']:>6}{row['seconds_per_batch']:>12.3f}"
            f"{row['ratio']:>8.3f}{row['cores_busy']:>12.2f}"
        )
    if "swarmsgd" in given.methods:
        print(verdict(medians))
    if given.output:
        about = {"machine": f"{os.cpu_count()} cores", "date": time.strftime("%Y-%m-%d")}
        figures = about | {"sleep_s": given.sleep, "rows": medians, "turns": rows}
        given.output.write_text(json.dumps(figures, indent=2) + "\n")
        plot(medians, given.sleep, given.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
