"""What a step of a swarm takes beyond the same training without communication.

    python benchmarks/step_overhead.py                 all of it, in under 5 minutes on idle cores
    python benchmarks/step_overhead.py 4x1 2x100       4 peers with a model of 1 MB, 2 with 100 MB
    python benchmarks/step_overhead.py 2x100 --sleep 0.25     however long communication takes

Real peers and a coordinator on this machine, relaysgd on a chain, float32. Computation is emulated:
the gradient takes a sleep, so that peers that share cores do not slow each other down by training.
For each number of peers and size of model:

    1. peers that do not sleep: what lies between their steps beyond local training is the time
       that communication takes
    2. from then on they sleep as long as that in each step (and at least 20 ms), or as `--sleep`
       says: the faster communication is, the less there is to hide it behind, so that to compare
       two versions of it takes the same sleep for both
    3. training alone, in one process without a swarm: the step to compare with
    4. the swarm without overlap, and with it

Steps are timed by when peers announce them, five together; figures are medians over these and all
peers. Prints a table, and writes JSON and a plot (`--output`).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from benchmarks.processes import events_of
from benchmarks.record import Record
from relayswarm.config import RunConfig, parse

Row = dict[str, Any]

LEAST_SLEEP_S = 0.02
WARM_UP = 5  # steps that are not counted
WINDOW = 5  # steps timed together: what peers announce may be heard a little late
STEPS = {1: 60, 10: 40, 100: 20}  # by MB

TASK = """
import time
import torch
from relayswarm.task import Measured, Options, Task, TensorData

class EmulatedOptions(Options):
    elements: int
    sleep_s: float = 0.0

class Point(torch.nn.Module):
    def __init__(self, elements):
        super().__init__()
        self.x = torch.nn.Parameter(torch.zeros(elements))

class Emulated(Task):
    name = "emulated"
    Options = EmulatedOptions
    is_random = False
    gradient = None

    def model(self):
        return Point(self.options.elements)

    def data(self, site):
        return TensorData(torch.zeros(1))

    def loss(self, model, batch):
        return model.x.sum()

    def gradients(self, model, batch):
        time.sleep(self.options.sleep_s)
        if self.gradient is None:
            self.gradient = torch.full((self.options.elements,), 0.01)
        return torch.zeros(()), (self.gradient,)

    def evaluate(self, model, site):
        return {"loss": Measured(float(model.x[0]))}
"""

ALONE = """
import json, statistics, sys, time
from peer.tasks.registry import load_task
from peer.training.trainer import Trainer, make_site
from relayswarm.config import parse

config = parse(sys.stdin.read())
trainer = Trainer(load_task(config.task), config, make_site(config, 0))
seconds = [trainer.train(step).seconds for step in range(config.steps)]
print(json.dumps(statistics.median(seconds[len(seconds) // 4 :])))
"""


class Case(NamedTuple):
    peers: int
    megabytes: int

    @property
    def steps(self) -> int:
        return STEPS.get(self.megabytes, 20) + WARM_UP

    def config(self, *, sleep_s: float, overlap: bool) -> RunConfig:
        settings = {
            "peers": self.peers,
            "steps": self.steps,
            "task.name": "emulated",
            "task.options.elements": self.megabytes * 250_000,
            "task.options.sleep_s": sleep_s,
            "topology.graph": "chain",
            "algorithm.overlap": overlap,
            "optimizer.momentum": 0.0,
            "evaluation.every": 0,
            "transport.deadline_s": 60.0,
        }
        return parse("", [f"{key}={json.dumps(value)}" for key, value in settings.items()])


DEFAULT = (Case(4, 1), Case(16, 1), Case(2, 10), Case(4, 10), Case(2, 100))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("cases", nargs="*", type=case_of, default=DEFAULT, metavar="PEERSxMB")
    parser.add_argument("--sleep", type=float, metavar="S", help="seconds of computation in a step")
    parser.add_argument("--output", type=Path, default=Path("reports/benchmark-step-overhead"))
    arguments = parser.parse_args()
    record = Record()
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        os.environ["PYTHONPATH"] = offer_task(Path(directory))
        for case in arguments.cases:
            rows.append(measure(case, arguments.sleep))
            print_row(rows[-1], header=len(rows) == 1)
    record.write(arguments.output / "step_overhead.json", {"rows": rows})
    plot(rows, arguments.output / "step_overhead.png")


def case_of(text: str) -> Case:
    peers, megabytes = text.split("x")
    return Case(int(peers), int(megabytes))


def offer_task(folder: Path) -> str:
    """A package with the task; returns what to put on PYTHONPATH."""
    metadata = folder / "emulated-1.0.dist-info"
    metadata.mkdir()
    (folder / "emulated.py").write_text(TASK)
    (metadata / "METADATA").write_text("Name: emulated\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[relayswarm.tasks]\nemulated = emulated:Emulated\n")
    return os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))


def measure(case: Case, asked_s: float | None = None) -> Row:
    idle = swarm_step(case.config(sleep_s=0.0, overlap=False))
    communication = idle["step_s"] - idle["compute_s"]
    sleep_s = asked_s or max(round(communication, 4), LEAST_SLEEP_S)
    alone = training_alone(case.config(sleep_s=sleep_s, overlap=False))
    row: Row = {
        "peers": case.peers,
        "megabytes": case.megabytes,
        "communication_s": communication,
        "sleep_s": sleep_s,
        "alone_s": alone,
    }
    for overlap in (False, True):
        step_s = swarm_step(case.config(sleep_s=sleep_s, overlap=overlap))["step_s"]
        name = "overlap" if overlap else "plain"
        row |= {f"{name}_s": step_s, f"{name}_ratio": step_s / alone}
    return row


def training_alone(config: RunConfig) -> float:
    """Seconds for a step, in a process with one thread as the swarm's peers have."""
    done = subprocess.run(
        [sys.executable, "-c", ALONE],
        input=config.to_toml(),
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    return float(json.loads(done.stdout))


def swarm_step(config: RunConfig) -> dict[str, float]:
    """Seconds from step to step of a swarm, and of these in local training."""
    at: defaultdict[str, dict[int, float]] = defaultdict(dict)
    compute: list[float] = []
    for event in events_of(config):
        if event["event"] == "step":
            at[event["peer"]][event["step"]] = time.perf_counter()
            if event["step"] >= WARM_UP:
                compute.append(event["compute_s"])
    assert len(at) == config.peers, f"{len(at)} peers of {config.peers} took steps"
    between = [
        (when[step] - when[step - WINDOW]) / WINDOW
        for when in at.values()
        for step in when
        if step >= WARM_UP + WINDOW and step - WINDOW in when
    ]
    return {"step_s": statistics.median(between), "compute_s": statistics.median(compute)}


def print_row(row: Row, *, header: bool) -> None:
    if header:
        print("        communi-   step  --- swarm, plain ---   ---- overlapping ----")
        print("peers  MB cation  alone     step  over   ratio     step  over   ratio     (ms)")
    ms = {key: 1000 * value for key, value in row.items() if key.endswith("_s")}
    print(f"{row['peers']:5} {row['megabytes']:3} {ms['communication_s']:6.1f}", end=" ")
    print(f"{ms['alone_s']:6.1f}", end="")
    for name in ("plain", "overlap"):
        over = ms[f"{name}_s"] - ms["alone_s"]
        print(f"   {ms[f'{name}_s']:6.1f} {over:5.1f} {row[f'{name}_ratio']:7.2f}", end="")
    print(flush=True)


def plot(rows: Sequence[Row], path: Path) -> None:
    """Ratios of steps to those alone."""
    figure = Figure(figsize=(8, 3.5), layout="constrained")
    axes = figure.add_subplot()
    labels = [f"{row['peers']} peers\n{row['megabytes']} MB" for row in rows]
    for k, name in enumerate(("plain", "overlap")):
        places = [place + 0.4 * k for place in range(len(rows))]
        axes.bar(places, [row[f"{name}_ratio"] for row in rows], width=0.4, label=name)
    axes.set_xticks([place + 0.2 for place in range(len(rows))], labels)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_ylabel("step, of one without a swarm")
    axes.legend()
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    main()
