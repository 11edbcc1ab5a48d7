"""What memory peers take, in models, beside the bound that follows from how they are built.

    python benchmarks/memory.py                        all methods below
    python benchmarks/memory.py relaysgd/chain         one of them

Real swarms on this machine whose peers have a model of 160 MB and hardly compute. At each of 20
steps, when the average has just been formed: what a peer has in memory as models or halves of one,
the most that any peer had. These are in mappings of their own, which nothing else is, above the 64
MiB of an arena of the C library's. One model of it is the gradient's, which is training's and not
counted. The bound is that of `relayswarm check` (`peer.footprint`). The rest is what the peer had
besides, at its largest: interpreter, libraries, and chunks under way, of whatever model. Prints a
table, and writes JSON and a plot (`--output`).
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from benchmarks.processes import events_of
from benchmarks.record import Record
from benchmarks.step_overhead import offer_task
from peer.footprint import memory_bound
from peer.localswarm.session import lay_out_run
from peer.views import views_of
from relayswarm.config import RunConfig, parse

Row = dict[str, Any]

ELEMENTS = 40_000_000  # halves of a model are larger than an arena, too
ARENA_BYTES = 64 << 20
STEPS = 40


class Case(NamedTuple):
    """A method on a graph."""

    settings: tuple[str, ...]
    peers: int

    @property
    def config(self) -> RunConfig:
        fixed = {
            "peers": self.peers,
            "steps": STEPS,
            "task.name": "emulated",
            "task.options.elements": ELEMENTS,
            "task.options.sleep_s": 0.02,
            "optimizer.momentum": 0.0,
            "evaluation.every": 0,
            "transport.deadline_s": 60.0,
        }
        return parse("", [*(f"{k}={json.dumps(v)}" for k, v in fixed.items()), *self.settings])

    @property
    def bound(self) -> int:
        """Models."""
        views = views_of(lay_out_run(self.config), correct_lr=False)
        bound = memory_bound(self.config, views)
        assert bound is not None, "of pairs no bound is known"
        return bound


CHAIN, RING = ("topology.graph=chain",), ("topology.graph=ring",)
TREES = ("topology.graph=complete", "topology.tree=double-binary-trees")
CASES = {
    "relaysgd/chain": Case(CHAIN, 3),
    "relaysgd/chain, overlap": Case((*CHAIN, "algorithm.overlap=true"), 3),
    "relaysgd/two trees": Case(TREES, 4),
    "dpsgd/ring": Case(("algorithm.name=dpsgd", *RING), 3),
    "d2/ring": Case(("algorithm.name=d2", *RING), 3),
    "gradient-tracking/ring": Case(("algorithm.name=gradient-tracking", *RING), 3),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", default=list(CASES), help=", ".join(CASES))
    parser.add_argument("--output", type=Path, default=Path("reports/benchmark-memory"))
    arguments = parser.parse_args()
    record = Record()
    rows = []
    print(f"{'method':26} models  bound  rest, MB")
    with tempfile.TemporaryDirectory() as directory:
        os.environ["PYTHONPATH"] = offer_task(Path(directory))
        for name in arguments.cases:
            rows.append(measure(name, CASES[name]))
            models, bound, rest = (rows[-1][key] for key in ("models", "bound", "rest_bytes"))
            print(f"{name:26} {models:6.2f} {bound:6} {rest / 1e6:9.0f}", flush=True)
    record.write(arguments.output / "memory.json", {"rows": rows})
    plot(rows, arguments.output / "memory.png")


def measure(name: str, case: Case) -> Row:
    """The checkpoint at the end takes copies of its own: the last 10 steps are not counted."""
    pids: dict[str, int] = {}
    models: dict[str, int] = {}  # bytes, by peer
    rest = 0
    for event in events_of(case.config):
        if event["event"] == "peer_started":
            pids[event["peer"]] = event["pid"]
        elif event["event"] == "step" and event["step"] in range(10, 30):
            peer, now = event["peer"], in_models(pids[event["peer"]])
            models[peer] = max(models.get(peer, 0), now)
            rest = max(rest, largest(pids[peer]) - models[peer])
    assert len(models) == case.config.peers
    most = max(models.values()) / (4 * ELEMENTS) - 1  # the gradient
    return {"method": name, "models": most, "bound": case.bound, "rest_bytes": rest}


def in_models(pid: int) -> int:
    """Bytes of a process that are in memory in mappings larger than an arena."""
    total, is_anonymous = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        first, *others = line.split()
        if not first.endswith(":"):
            is_anonymous = len(others) == 4  # of five, the last is a file's name
        elif first == "Rss:" and is_anonymous and int(others[0]) * 1024 > ARENA_BYTES:
            total += int(others[0]) * 1024
    return total


def largest(pid: int) -> int:
    """Bytes that a process had in memory at most."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmHWM: this needs Linux")


def plot(rows: Sequence[Row], path: Path) -> None:
    figure = Figure(figsize=(8, 3), layout="constrained")
    axes = figure.add_subplot()
    names = [row["method"] for row in rows]
    axes.barh(names, [row["bound"] for row in rows], color="lightgray", label="bound")
    axes.barh(names, [row["models"] for row in rows], height=0.4, label="measured")
    axes.invert_yaxis()
    axes.set_xlabel("models")
    axes.legend()
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    main()
