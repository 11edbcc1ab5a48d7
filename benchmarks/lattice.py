"""What the lattice saves in bytes, and whether it costs accuracy, beside float32 in the same runs.

    python benchmarks/lattice.py          bytes and accuracy on digits, in about five minutes
    python benchmarks/lattice.py bytes    one of the two
    python benchmarks/lattice.py fashion-mnist --data-dir FOLDER    accuracy there; half an hour

bytes          8 daemons on digits: the bytes of all that they sent to each other, as their own
               counters have it: headers, framing, what was sent again, metrics, announced losses
accuracy       the same in the simulator, `--seeds` of them, each with and without the lattice: the
               same batches, losses and order of events, so that the pair differs in rounding alone;
               how often a message was written with more bits, or in full precision
fashion-mnist  as accuracy, on Fashion-MNIST

Each without faults and with a tenth of the messages lost. Prints tables, and writes JSON and a plot
(`--output`). Simulations run in two processes of one thread each.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure

from benchmarks.record import Record
from peer.codec.lattice import FULL_PRECISION
from peer.simulator.run import simulate
from relayswarm.config import RunConfig, parse

Row = dict[str, Any]

SEEDS = 5
LOSSES = (0.0, 0.1)
LOCAL_STEPS = {"digits": 300, "fashion-mnist": 150}
PROCESSES = 2
MOST_BYTES, MOST_POINTS = 0.27, 0.3  # what is aimed at
FLOAT32, LATTICE = "float32", "lattice"
PLAIN = str(FULL_PRECISION)

COMMON = """
peers = 8
deterministic = true
[data]
batch_size = 32
[topology]
graph = "random-regular"
degree = 3
"""


@dataclass(frozen=True)
class Method:
    """How an algorithm is run, in TOML, and what puts its messages on the lattice."""

    name: str
    local_steps: int
    settings: tuple[str, ...]
    formats: Mapping[str, str]


METHODS = (
    Method(
        "relaysgd",
        1,
        ("data.alpha=0.1",),
        {name: f'transport.wire_format="{name}"' for name in (FLOAT32, LATTICE)},
    ),
    Method(
        "swarmsgd",
        3,
        (),
        {FLOAT32: 'algorithm.quantize="none"', LATTICE: 'algorithm.quantize="lattice"'},
    ),
)


class Case(NamedTuple):
    """One run."""

    task: str
    method: int
    loss: float
    wire: str
    seed: int

    @property
    def algorithm(self) -> str:
        return METHODS[self.method].name

    def config(self) -> RunConfig:
        method = METHODS[self.method]
        settings = [
            f'task.name="{self.task}"',
            f'algorithm.name="{method.name}"',
            f"faults.drop={self.loss}",
            f"seed={self.seed}",
            f"steps={LOCAL_STEPS[self.task] // method.local_steps}",
            f"algorithm.local_steps={method.local_steps}",
            *method.settings,
            method.formats[self.wire],
        ]
        return parse(COMMON, settings)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = ("bytes", "accuracy", "fashion-mnist")
    parser.add_argument("parts", nargs="*", help=f"{', '.join(parts)}; none: the first two")
    parser.add_argument("--data-dir", type=Path, help="the folder that holds fashion-mnist")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="of the parts on accuracy")
    parser.add_argument("--output", type=Path, default=Path("reports/benchmark-lattice"))
    arguments = parser.parse_args()
    chosen = arguments.parts or parts[:2]
    for name in set(chosen) - set(parts):
        parser.error(f"no part {name!r}: choose from {', '.join(parts)}")
    if "fashion-mnist" in chosen and arguments.data_dir is None:
        parser.error("fashion-mnist: needs --data-dir, the folder that holds its files")
    record = Record()
    results: dict[str, list[Row]] = {}
    for name in chosen:
        if name == "bytes":
            results[name] = bytes_sent()
            print_bytes(results[name])
        else:
            task = "digits" if name == "accuracy" else name
            results[name] = accuracy(task, arguments.data_dir, range(1, arguments.seeds + 1))
            print_accuracy(task, results[name])
    record.write(arguments.output / "lattice.json", results)
    plot(results, arguments.output / "lattice.png")


# --- bytes ----------------------------------------------------------------------------------------


def bytes_sent() -> list[Row]:
    """A row for each method and share of losses."""
    rows = []
    for method, each in enumerate(METHODS):
        for loss in LOSSES:
            sent = {
                wire: daemons(Case("digits", method, loss, wire, seed=1))
                for wire in (FLOAT32, LATTICE)
            }
            ratio = sent[LATTICE] / sent[FLOAT32]
            rows.append({"algorithm": each.name, "loss": loss, "bytes": sent, "ratio": ratio})
    return rows


def daemons(case: Case) -> int:
    """Bytes that the daemons of a swarm on this machine sent to each other."""
    with tempfile.TemporaryDirectory() as folder:
        config, report = Path(folder) / "run.toml", Path(folder) / "report"
        config.write_text(case.config().to_toml())
        command = [sys.executable, "-m", "peer.cli", "up", str(config), "--no-baseline", "--json"]
        subprocess.run([*command, "--report", str(report)], check=True, stdout=subprocess.DEVNULL)
        peers = json.loads((report / "report.json").read_text())["peers"]
    return sum(peer["bytes_sent"] for peer in peers)


# --- accuracy -------------------------------------------------------------------------------------


class Ended(NamedTuple):
    """How a simulated run ended."""

    accuracy: float  # mean over the peers
    payload_bytes: int
    messages_by_bits: Mapping[str, int]


def accuracy(task: str, data_dir: Path | None, seeds: Sequence[int]) -> list[Row]:
    """A row for each method and share of losses."""
    cases = [
        Case(task, method, loss, wire, seed)
        for method in range(len(METHODS))
        for loss in LOSSES
        for seed in seeds
        for wire in (FLOAT32, LATTICE)
    ]
    with ProcessPoolExecutor(PROCESSES, get_context("spawn")) as pool:
        ends = dict(zip(cases, pool.map(simulated, cases, [data_dir] * len(cases)), strict=True))
    return [
        _paired(task, method, loss, seeds, ends)
        for method in range(len(METHODS))
        for loss in LOSSES
    ]


def simulated(case: Case, data_dir: Path | None) -> Ended:
    """One run, in a process of its own."""
    torch.set_num_threads(1)
    outcome = simulate(case.config(), data_dir, ignore)
    assert outcome.simulation is not None
    accuracies = [peer.metrics["accuracy"] or 0.0 for peer in outcome.peers]
    cost = outcome.simulation
    return Ended(statistics.mean(accuracies), cost["bytes_sent"], cost["messages_by_bits"])


def ignore(event: Mapping[str, Any]) -> None:
    """Nobody watches."""


def _paired(
    task: str, method: int, loss: float, seeds: Sequence[int], ends: Mapping[Case, Ended]
) -> Row:
    plain, lattice = (
        [ends[Case(task, method, loss, wire, seed)] for seed in seeds]
        for wire in (FLOAT32, LATTICE)
    )
    points = [100 * (b.accuracy - a.accuracy) for a, b in zip(plain, lattice, strict=True)]
    bits = sorted({bits for end in lattice for bits in end.messages_by_bits}, key=int)
    written = {b: sum(end.messages_by_bits.get(b, 0) for end in lattice) for b in bits}
    return {
        "algorithm": METHODS[method].name,
        "loss": loss,
        "accuracy": {
            FLOAT32: statistics.mean(end.accuracy for end in plain),
            LATTICE: statistics.mean(end.accuracy for end in lattice),
        },
        "points": points,
        "mean_points": statistics.mean(points),
        "standard_error": statistics.stdev(points) / math.sqrt(len(points)),
        "payload_ratio": sum(e.payload_bytes for e in lattice)
        / sum(e.payload_bytes for e in plain),
        "messages_by_bits": written,
    }


# --- what is shown --------------------------------------------------------------------------------


def print_bytes(rows: Sequence[Row]) -> None:
    print("bytes of all messages between 8 daemons on digits, lattice / float32")
    for row in rows:
        sent = row["bytes"]
        print(
            f"  {row['algorithm']:9s} {row['loss']:4.0%} lost  {sent[LATTICE]:12,} / "
            f"{sent[FLOAT32]:12,} = {row['ratio']:.4f}  {_met(row['ratio'] <= MOST_BYTES)}"
        )


def print_accuracy(task: str, rows: Sequence[Row]) -> None:
    print(
        f"accuracy on {task}, {len(rows[0]['points'])} seeds: lattice, float32, points between them"
    )
    for row in rows:
        means, written = row["accuracy"], row["messages_by_bits"]
        others = ", ".join(
            f"{count / sum(written.values()):.2%} {_bits(bits)}"
            for bits, count in written.items()
            if bits != "8"
        )
        print(
            f"  {row['algorithm']:9s} {row['loss']:4.0%} lost  {means[LATTICE]:.2%} "
            f"{means[FLOAT32]:.2%} {row['mean_points']:+.2f} +- {row['standard_error']:.2f}  "
            f"{_met(row['mean_points'] >= -MOST_POINTS)}  payload {row['payload_ratio']:.4f}; "
            f"of messages {others}"
        )


def _bits(bits: str) -> str:
    return "in full precision" if bits == PLAIN else f"with {bits} bits"


def _met(met: bool) -> str:
    return "met" if met else "MISSED"


def plot(results: Mapping[str, Sequence[Row]], path: Path) -> None:
    """A panel for each part: ratios of bytes, and points of each seed."""
    figure = Figure(figsize=(4.2 * len(results), 3.4), layout="constrained")
    panels = figure.subplots(1, len(results), squeeze=False)[0]
    for axes, (part, rows) in zip(panels, results.items(), strict=True):
        axes.set_title(part, fontsize=10)
        places = range(len(rows))
        axes.set_xticks(places, [f"{r['algorithm']}\n{r['loss']:.0%} lost" for r in rows], size=8)
        if part == "bytes":
            axes.bar(places, [row["ratio"] for row in rows], color="#0072B2")
            axes.axhline(MOST_BYTES, color="black", linestyle=":")
            axes.set_ylabel("bytes, of float32's")
            continue
        for place, row in zip(places, rows, strict=True):
            axes.plot([place] * len(row["points"]), row["points"], "o", color="#0072B2", alpha=0.5)
            axes.plot(place, row["mean_points"], "_", color="black", markersize=20)
        axes.axhline(-MOST_POINTS, color="black", linestyle=":")
        axes.set_ylabel("points of accuracy above float32's")
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    main()
