"""How long until commands answer and daemons serve, beside what they import.

    python benchmarks/startup.py

In turns, as processes of their own:

python        an interpreter that does nothing
import grpc   what the coordinator cannot do without
import torch  what a peer cannot do without
help          `relayswarm --help`, until it has ended
coordinator   `relayswarm coordinator`, until it says that it serves
peer          `relayswarm peer` for a waiting coordinator, until it says that it serves

Medians over the turns, on the clock and of the processor. Prints a table, and writes JSON and a
plot (`--output`).
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from benchmarks.record import Record
from peer.localswarm.process import own_command

TURNS = 7
LISTEN = ("--listen", "127.0.0.1:0", "--metrics-listen", "127.0.0.1:0", "--json")
RUN = 'peers = 2\n[task]\nname = "digits"\n'


class Spent(NamedTuple):
    """Seconds."""

    clock: float
    processor: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("reports/benchmark-startup"))
    parser.add_argument("--turns", type=int, default=TURNS)
    arguments = parser.parse_args()
    record = Record()
    with tempfile.TemporaryDirectory() as name:
        rows = measure(Path(name), arguments.turns)
    record.write(arguments.output / "startup.json", {"rows": rows}, turns=arguments.turns)
    plot(rows, arguments.output / "startup.png")
    print(f"{'what':14} {'seconds':>8} {'of the processor':>17} {'beyond torch':>13}")
    for row in rows:
        beyond = f"{row['beyond_torch_s']:13.2f}" if row["what"] == "peer" else ""
        print(f"{row['what']:14} {row['clock_s']:8.2f} {row['processor_s']:17.2f} {beyond}")


def measure(folder: Path, turns: int) -> list[dict[str, Any]]:
    config = folder / "run.toml"
    config.write_text(RUN)
    spent: defaultdict[str, list[Spent]] = defaultdict(list)
    for _ in range(turns):
        for what, once in subjects(config).items():
            spent[what].append(once())
    torch = spent["import torch"]
    return [
        {
            "what": what,
            "clock_s": statistics.median(one.clock for one in each),
            "processor_s": statistics.median(one.processor for one in each),
            "beyond_torch_s": statistics.median(
                one.clock - base.clock for one, base in zip(each, torch, strict=True)
            ),
            "all_clock_s": [one.clock for one in each],
        }
        for what, each in spent.items()
    ]


def subjects(config: Path) -> dict[str, Callable[[], Spent]]:
    python = (sys.executable, "-c")
    coordinator = own_command("coordinator", "--config", str(config), *LISTEN)
    return {
        "python": partial(until, [*python, "pass"], None),
        "import grpc": partial(until, [*python, "import grpc"], None),
        "import torch": partial(until, [*python, "import torch"], None),
        "help": partial(until, own_command("--help"), None),
        "coordinator": partial(until, coordinator, "coordinator_started"),
        "peer": partial(peer, coordinator),
    }


def peer(coordinator: Sequence[str]) -> Spent:
    """Until a peer serves; its coordinator does so already."""
    with subprocess.Popen(coordinator, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as other:
        try:
            address = said(other, "coordinator_started")["address"]
            command = own_command("peer", "--coordinator", address, "--device", "cpu", *LISTEN)
            return until(command, "peer_started")
        finally:
            other.kill()


def until(command: Sequence[str], event: str | None) -> Spent:
    """Run a command until it says this event, or until it has ended."""
    began, before = time.perf_counter(), children_s()
    output = subprocess.PIPE if event else subprocess.DEVNULL
    with subprocess.Popen(command, stdout=output, stderr=subprocess.DEVNULL) as process:
        if event:
            said(process, event)
            clock = time.perf_counter() - began
            process.kill()
            process.wait()
        else:
            process.wait()
            clock = time.perf_counter() - began
            assert process.returncode == 0, command
    return Spent(clock, children_s() - before)


def said(process: subprocess.Popen[bytes], name: str) -> dict[str, Any]:
    """The first event of that name."""
    assert process.stdout
    for line in process.stdout:
        event: dict[str, Any] = json.loads(line)
        if event["event"] == name:
            return event
    raise AssertionError(f"{process.args!r} ended without {name}")


def children_s() -> float:
    """Processor seconds of all children that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.add_subplot()
    axes.barh([row["what"] for row in rows], [row["clock_s"] for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel("seconds")
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    main()
