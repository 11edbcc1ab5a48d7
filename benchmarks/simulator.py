"""How fast the simulator is: stacked peers beside one object per peer, and a plain NumPy loop.

    python benchmarks/simulator.py                  all of it, in a few minutes
    python benchmarks/simulator.py training scale   some of it

training   a step of local training: peers stacked, and one after another
scale      relaysgd on quadratics with 1,024 peers: stacked, and one object per peer
figure2    relaysgd on quadratics with 4 to 64 peers, as in figure 2 of the RelaySGD paper, beside
           a NumPy loop over arrays of all models that does the same arithmetic and nothing else

What is compared runs in turn, and ratios are medians over the turns. Prints a table, and writes
JSON and a plot (`--output`).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from coordinator.views import lay_out
from peer.manifest import hardware, versions
from peer.simulator.learning import simulate
from peer.simulator.stacked_run import StackedSimulation
from peer.simulator.stacked_training import OneByOne, Stacked
from peer.tasks.quadratics import Quadratics
from peer.tasks.registry import load_task
from peer.training.trainer import Trainer, make_site
from peer.views import peer_ids
from relayswarm.config import RunConfig, parse

Row = dict[str, Any]

TURNS = 3
WORKLOADS = (("quadratics", 16), ("quadratics", 256), ("digits", 4), ("digits", 16))
STEPS_PER_TURN = 5
SCALE_PEERS, SCALE_STEPS, SHORT_STEPS = 1024, 1000, 8
FIGURE_PEERS, FIGURE_STEPS, FIGURE_RATE = (4, 8, 16, 32, 64), 100, 0.5
THREADS = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = {"training": training, "scale": scale, "figure2": figure_2}
    parser.add_argument("parts", nargs="*", help=f"{', '.join(parts)}; none: all")
    parser.add_argument("--output", type=Path, default=Path("reports/benchmark-simulator"))
    arguments = parser.parse_args()
    chosen = arguments.parts or list(parts)
    for name in set(chosen) - set(parts):
        parser.error(f"no part {name!r}: choose from {', '.join(parts)}")
    load_before = os.getloadavg()[0]
    rows = [row for name in chosen for row in parts[name]()]
    about = {
        "date": date.today().isoformat(),
        "load_before": load_before,  # above 0: other work took part of the machine
        "hardware": hardware(),
        "versions": versions(),
    }
    arguments.output.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**about, "rows": rows}, indent=2)
    (arguments.output / "simulator.json").write_text(text + "\n")
    plot(rows, arguments.output / "simulator.png")
    print_table(rows, about)


# --- parts -----------------------------------------------------------------------------------


def training() -> list[Row]:
    """Local steps alone: each model has its own data, optimizer state and order of samples."""
    torch.set_num_threads(THREADS)
    return [_training(task, peers) for task, peers in WORKLOADS]


def _training(task: str, peers: int) -> Row:
    config = parse(f'peers = {peers}\nsteps = 100\n[task]\nname = "{task}"')
    sites = [make_site(config, shard) for shard in range(peers)]
    trainers = [Trainer(load_task(config.task), config, site) for site in sites]
    start = trainers[0].flat.vector.clone()
    together = Stacked(Trainer(load_task(config.task), config, sites[0]), sites)
    alone = OneByOne(trainers)
    models = [start.repeat(peers, 1) for _ in range(2)]

    def steps(of: Stacked | OneByOne, on: torch.Tensor) -> Callable[[], None]:
        def run() -> None:
            for step in range(STEPS_PER_TURN):
                of.train(range(peers), step, 1.0, on)

        return run

    seconds = in_turn(
        {"one by one": steps(alone, models[0]), "stacked": steps(together, models[1])}
    )
    per_step = {name: [s / STEPS_PER_TURN for s in times] for name, times in seconds.items()}
    what = f"step of {peers} peers, {task}, {start.numel():,} parameters, {THREADS} threads"
    return row("training", what, per_step, "one by one", "stacked")


def scale() -> list[Row]:
    """A thousand peers: a whole stacked run, and a few steps of one object per peer."""
    torch.set_num_threads(1)
    small = quadratics(SCALE_PEERS, SHORT_STEPS, "binary-tree")
    large = quadratics(SCALE_PEERS, SCALE_STEPS, "binary-tree")
    loops: list[Row] = []

    def whole() -> None:
        simulation = StackedSimulation(large, None, ignore)
        began = time.perf_counter()
        simulation.swarm.run()
        loops.append({"loop": time.perf_counter() - began, "replayed": simulation.swarm.replayed})

    runs = {
        f"one object per peer, {SHORT_STEPS} steps": lambda: simulate(small, None, ignore),
        f"stacked, {SHORT_STEPS} steps": lambda: simulate(small, None, ignore, stacked="on"),
        f"stacked, {SCALE_STEPS} steps": whole,
    }
    seconds = in_turn(runs, turns=1)
    per_step = statistics.median(next(iter(seconds.values()))) / SHORT_STEPS
    estimate = {f"one object per peer, {SCALE_STEPS} steps, extrapolated": [per_step * SCALE_STEPS]}
    names = [next(iter(estimate)), f"stacked, {SCALE_STEPS} steps"]
    what = f"relaysgd, {SCALE_PEERS} peers on a binary tree, quadratics, d = 10"
    return [row("scale", what, seconds | estimate, names[0], names[1]) | loops[-1]]


def figure_2() -> list[Row]:
    """Whole runs on chains; the NumPy loop has no peers, messages, clock, faults or report."""
    torch.set_num_threads(1)
    return [_figure_2(peers) for peers in FIGURE_PEERS]


def _figure_2(peers: int) -> Row:
    config = quadratics(peers, FIGURE_STEPS, "chain")
    ends: dict[str, Any] = {}

    def simulated(stacked: Any) -> None:
        outcome = simulate(config, None, ignore, stacked=stacked)
        models = [peer.model["x"].numpy() for peer in outcome.peers if peer.model is not None]
        ends[stacked] = np.stack(models)

    def looped() -> None:
        ends["numpy"] = numpy_relaysgd(config)

    seconds = in_turn(
        {
            "one object per peer": lambda: simulated("off"),
            "stacked": lambda: simulated("on"),
            "NumPy loop": looped,
        },
        turns=TURNS if peers <= 16 else 1,
    )
    apart = max(float(abs(ends[name] - ends["numpy"]).max()) for name in ("on", "off"))
    assert apart < 1e-9, f"the results are {apart} apart"
    what = f"relaysgd on a chain of {peers}, quadratics, {FIGURE_STEPS} steps"
    return row("figure2", what, seconds, "stacked", "NumPy loop") | {"apart": apart}


def numpy_relaysgd(config: RunConfig) -> Any:
    """RelaySGD (Algorithm 1 and equation 1) over arrays: final models, shape (n, d)."""
    n = config.peers
    layout = lay_out(config, peer_ids(n))
    numbers = {peer: k for k, peer in enumerate(layout.members)}
    edges = [(numbers[a], numbers[b]) for a, b in layout.tree_edges[0]]
    directed = [*edges, *((b, a) for a, b in edges)]
    sender, receiver = (np.array(ends) for ends in zip(*directed, strict=True))
    feeds = (receiver[:, None] == sender) & (sender[:, None] != receiver)  # [e, f]: e goes on as f
    task = load_task(config.task)
    assert isinstance(task, Quadratics)
    problem = task.problem(make_site(config, 0))
    x = np.zeros((n, problem.x_star.size))
    message, count = np.zeros((len(directed), x.shape[1])), np.zeros(len(directed))
    for _ in range(config.steps):
        residual = np.einsum("nij,nj->ni", problem.a, x) + problem.b
        half = x - FIGURE_RATE * 2 * np.einsum("nji,nj->ni", problem.a, residual)
        message, count = half[sender] + feeds.T @ message, 1 + feeds.T @ count  # lines 5 and 6
        total, counted = half.copy(), np.ones(n)
        np.add.at(total, receiver, message)
        np.add.at(counted, receiver, count)
        x = (total + (n - counted)[:, None] * x) / n
    return x


# --- common ----------------------------------------------------------------------------------


def quadratics(peers: int, steps: int, graph: str) -> RunConfig:
    return parse(
        f'peers = {peers}\nsteps = {steps}\n[task]\nname = "quadratics"\n'
        f'[topology]\ngraph = "{graph}"\n[optimizer]\nlr = {FIGURE_RATE}'
    )


def ignore(event: Mapping[str, Any]) -> None:
    """Nobody watches."""


def in_turn(runs: Mapping[str, Callable[[], Any]], turns: int = TURNS) -> dict[str, list[float]]:
    """Seconds of each, run in turn. The first round warms up, unless it is the only one."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(turns + (turns > 1)):
        for name, run in runs.items():
            began = time.perf_counter()
            run()
            if turn or turns == 1:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def row(part: str, what: str, seconds: Mapping[str, Sequence[float]], slow: str, fast: str) -> Row:
    ratios = [a / b for a, b in zip(seconds[slow], seconds[fast], strict=True)]
    return {
        "part": part,
        "what": what,
        "seconds": {name: statistics.median(times) for name, times in seconds.items()},
        "ratio": statistics.median(ratios),
        "ratio_of": f"{slow} / {fast}",
    }


def plot(rows: Sequence[Row], path: Path) -> None:
    """Seconds of each kind, one group of bars for each row."""
    figure = Figure(figsize=(8, 1 + 0.5 * sum(len(r["seconds"]) for r in rows)), layout="tight")
    axes = figure.subplots()
    labels, values = [], []
    for each in rows:
        for name, value in each["seconds"].items():
            labels.append(f"{each['what']}\n{name}")
            values.append(value)
    axes.barh(range(len(values)), values, color="#0072B2")
    axes.set_yticks(range(len(values)), labels, fontsize=6)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel("seconds")
    figure.savefig(path, dpi=150)


def print_table(rows: Sequence[Row], about: Mapping[str, Any]) -> None:
    machine = about["hardware"]
    print(f"{about['date']}, {machine['cpu']}, {machine['cores']} cores, ", end="")
    print(f"load {about['load_before']:.1f} before, torch {about['versions']['torch']}")
    for each in rows:
        print(f"\n{each['what']}")
        for name, seconds in each["seconds"].items():
            print(f"  {seconds:12.4f} s  {name}")
        print(f"  {each['ratio']:12.1f}    {each['ratio_of']}")
        if "loop" in each:
            print(
                f"  {each['loop']:12.4f} s  of it the steps; {each['replayed']} by recorded plans"
            )


if __name__ == "__main__":
    main()
