"""What memory peers take, in models, beside the bound that follows from how they are built.

    python benchmarks/memory.py                        all methods below
    python benchmarks/memory.py relaysgd/chain         one of them

Real swarms on this machine whose peers have a model of 60 MB and hardly compute, and the same with
a model of 20 MB: by how much the largest resident sizes of a peer by its 30th step differ, for
each byte by which the models do (chunks under way take as much with either). One model of it is the
gradient's, which is training's and not counted. The bound is that of `relayswarm check`
(`peer.footprint`). Prints a table, and writes JSON and a plot (`--output`).
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

LARGE, SMALL = 15_000_000, 5_000_000  # elements
STEPS = 40


class Case(NamedTuple):
    """A method on a graph."""

    settings: tuple[str, ...]
    peers: int

    def config(self, elements: int) -> RunConfig:
        fixed = {
            "peers": self.peers,
            "steps": STEPS,
            "task.name": "emulated",
            "task.options.elements": elements,
            "task.options.sleep_s": 0.02,
            "optimizer.momentum": 0.0,
            "evaluation.every": 0,
            "transport.deadline_s": 60.0,
        }
        return parse("", [*(f"{k}={json.dumps(v)}" for k, v in fixed.items()), *self.settings])

    @property
    def bound(self) -> int:
        """Models."""
        config = self.config(SMALL)
        bound = memory_bound(config, views_of(lay_out_run(config), correct_lr=False))
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
    print(f"{'method':26} models  bound")
    with tempfile.TemporaryDirectory() as directory:
        os.environ["PYTHONPATH"] = offer_task(Path(directory))
        for name in arguments.cases:
            rows.append(measure(name, CASES[name]))
            print(f"{name:26} {rows[-1]['models']:6.2f} {rows[-1]['bound']:6}", flush=True)
    record.write(arguments.output / "memory.json", {"rows": rows})
    plot(rows, arguments.output / "memory.png")


def measure(name: str, case: Case) -> Row:
    large, small = (largest_resident(case.config(elements)) for elements in (LARGE, SMALL))
    models = (large - small) / (4 * (LARGE - SMALL)) - 1  # the gradient
    return {"method": name, "models": models, "bound": case.bound, "small_bytes": small}


def largest_resident(config: RunConfig) -> int:
    """Bytes: the largest that any peer was in the first 30 of 40 steps. The checkpoint at the end
    takes copies of its own."""
    pids: dict[str, int] = {}
    sizes: dict[str, int] = {}
    for event in events_of(config):
        if event["event"] == "peer_started":
            pids[event["peer"]] = event["pid"]
        elif event["event"] == "step" and event["step"] in range(10, 30):
            sizes[event["peer"]] = peak_of(pids[event["peer"]])
    assert len(sizes) == config.peers
    return max(sizes.values())


def peak_of(pid: int) -> int:
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
