"""How fast the simulator is: stacked peers, one object per peer, and a plain NumPy loop.

    python benchmarks/simulator.py                  all of it, in a few minutes
    python benchmarks/simulator.py training scale   some of it

layout     electing the tree of 1,024 peers on sparse graphs, and of 400 on the complete one
training   a step of local training: peers stacked, and one after another
scale      relaysgd on quadratics (d = 10), 1,024 peers, 1,000 steps: stacked; one object per peer,
           each a trainer with its model (`--stacked off`); and with state machines for every
           message to the end, as in a run with losses, of which a short one is measured and the
           rest extrapolated
figure2    relaysgd on quadratics with 4 to 64 peers, as in figure 2 of the RelaySGD paper, beside
           a NumPy loop over arrays of all models that does the same arithmetic and nothing else
whole      only if asked for: what `scale` extrapolates, some minutes

What is compared runs in turn, and ratios are medians over the turns, of seconds on the clock.
Processor seconds stand beside them: where these are far fewer, others had the machine. Prints a
table, and writes JSON and a plot (`--output`).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from matplotlib.figure import Figure

from benchmarks.record import Record
from coordinator.graphs import build_graph
from coordinator.spanning_tree import spanning_tree
from coordinator.views import lay_out
from peer.outcome import RunOutcome
from peer.simulator.learning import Simulation
from peer.simulator.memory import memory_of_a_swarm
from peer.simulator.run import simulate
from peer.simulator.stacked_run import StackedSimulation
from peer.simulator.stacked_training import OneByOne, Stacked
from peer.tasks.quadratics import Quadratics
from peer.tasks.registry import load_task
from peer.training.trainer import Trainer, make_site
from peer.views import peer_ids
from relayswarm.config import RunConfig, parse
from relayswarm.task import Task

Row = dict[str, Any]

TURNS = 3
BY_AUTOGRAD = "quadratics by autograd"
WORKLOADS = (
    ("quadratics", 16),
    ("quadratics", 256),
    (BY_AUTOGRAD, 16),
    ("digits", 4),
    ("digits", 16),
)
STEPS_PER_TURN = 5
SCALE_PEERS, SCALE_STEPS, SHORT_STEPS = 1024, 1000, 40
STACKED_SHORT = f"stacked, {SHORT_STEPS} steps"
HANDLED = "every message handled"
HANDLED_SHORT = f"{HANDLED}, {SHORT_STEPS} steps"
SCALE_GRAPHS = ("binary-tree", "random-regular", "chain")
LAYOUTS = (
    ("chain", 1024),
    ("binary-tree", 1024),
    ("random-regular", 1024),
    ("double-binary-trees", 1024),
    ("complete", 400),
)
FIGURE_PEERS, FIGURE_STEPS, FIGURE_RATE = (4, 8, 16, 32, 64), 100, 0.5
THREADS = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = {"layout": layout, "training": training, "scale": scale, "figure2": figure_2}
    usual = list(parts)
    parts |= {"whole": whole}
    parser.add_argument("parts", nargs="*", help=f"{', '.join(parts)}; none: all but the last")
    parser.add_argument("--output", type=Path, default=Path("reports/benchmark-simulator"))
    arguments = parser.parse_args()
    chosen = arguments.parts or usual
    for name in set(chosen) - set(parts):
        parser.error(f"no part {name!r}: choose from {', '.join(parts)}")
    record = Record()
    rows = [row for name in chosen for row in parts[name]()]
    about = record.write(arguments.output / "simulator.json", {"rows": rows})
    plot(rows, arguments.output / "simulator.png")
    print_table(rows, about)


# --- parts -----------------------------------------------------------------------------------


def layout() -> list[Row]:
    """The Spanning Tree Protocol's election, beside drawing and checking the graph itself."""
    return [_layout(graph, peers) for graph, peers in LAYOUTS]


def _layout(name: str, peers: int) -> Row:
    graph = build_graph(name, peers, degree=4)
    timings = in_turn(
        {
            "the graph": lambda: build_graph(name, peers, degree=4),
            "its election": lambda: spanning_tree(graph),
        }
    )
    what = f"{name} of {peers}, {len(graph.edges):,} edges"
    return row("layout", what, timings, "the graph", "its election")


def training() -> list[Row]:
    """Local steps alone: each model has its own data, optimizer state and order of samples."""
    torch.set_num_threads(THREADS)
    return [_training(task, peers) for task, peers in WORKLOADS]


class ByAutograd(Quadratics):
    """A small model whose gradients nobody knows in closed form."""

    gradients = Task.gradients


def _training(name: str, peers: int) -> Row:
    task = "quadratics" if name == BY_AUTOGRAD else name
    config = parse(f'peers = {peers}\nsteps = 100\n[task]\nname = "{task}"')
    make = ByAutograd if name == BY_AUTOGRAD else partial(load_task, config.task)
    sites = [make_site(config, shard) for shard in range(peers)]
    trainers = [Trainer(make(), config, site) for site in sites]
    start = trainers[0].flat.vector.clone()
    together = Stacked(Trainer(make(), config, sites[0]), sites)
    alone = OneByOne(trainers)
    models = [start.repeat(peers, 1) for _ in range(2)]

    def steps(of: Stacked | OneByOne, on: torch.Tensor) -> Callable[[], None]:
        def run() -> None:
            for step in range(STEPS_PER_TURN):
                of.train(range(peers), step, 1.0, on)

        return run

    timings = in_turn(
        {"one by one": steps(alone, models[0]), "stacked": steps(together, models[1])}
    )
    per_step = {
        name: [_scaled(took, 1 / STEPS_PER_TURN) for took in times]
        for name, times in timings.items()
    }
    what = f"step of {peers} peers, {name}, {start.numel():,} parameters, {THREADS} threads"
    return row("training", what, per_step, "one by one", "stacked")


def scale() -> list[Row]:
    """A thousand peers: whole runs where plans repeat, and a short one of one object per peer."""
    torch.set_num_threads(1)
    simulate(quadratics(4, 2, "chain"), None, ignore, stacked="on")  # what torch loads only once
    return [*map(_scale, SCALE_GRAPHS)]


def _scale(graph: str) -> Row:
    short, long = (quadratics(SCALE_PEERS, steps, graph) for steps in (SHORT_STEPS, SCALE_STEPS))
    replayed: list[int] = []

    def stacked() -> None:
        simulation = StackedSimulation(long, None, ignore, stacking="on")
        simulation.run()
        replayed.append(simulation.swarm.replayed)

    together = f"stacked, {SCALE_STEPS} steps"
    runs = {
        together: stacked,
        STACKED_SHORT: lambda: simulate(short, None, ignore, stacked="on"),
        f"one object per peer, {SCALE_STEPS} steps": lambda: simulate(long, None, ignore),
        HANDLED_SHORT: lambda: handled(short),
    }
    timings = in_turn(runs, turns=1)
    whole_run = f"{HANDLED}, {SCALE_STEPS} steps, extrapolated"
    timings[whole_run] = [_scaled(timings[HANDLED_SHORT][0], SCALE_STEPS / SHORT_STEPS)]
    what = f"relaysgd, {SCALE_PEERS} peers on the graph {graph}, quadratics, d = 10"
    return row("scale", what, timings, whole_run, together) | {"replayed": replayed[-1]}


def whole() -> list[Row]:
    """The figure that `scale` extrapolates."""
    torch.set_num_threads(1)
    config = quadratics(SCALE_PEERS, SCALE_STEPS, SCALE_GRAPHS[0])
    alone = "one object per peer"
    timings = in_turn(
        {alone: lambda: simulate(config, None, ignore), HANDLED: lambda: handled(config)}, turns=1
    )
    what = f"relaysgd, {SCALE_PEERS} peers on the graph {SCALE_GRAPHS[0]}, {SCALE_STEPS} steps"
    return [row("whole", what, timings, HANDLED, alone)]


def handled(config: RunConfig) -> RunOutcome:
    """A run in which state machines handle every message of every step."""
    return Simulation(config, None, ignore, mean_every=0).run()


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

    timings = in_turn(
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
    return row("figure2", what, timings, "stacked", "NumPy loop") | {"apart": apart}


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


class Timing(NamedTuple):
    """Seconds on the clock, and of this process on the processor."""

    wall: float
    cpu: float


def _scaled(timing: Timing, factor: float) -> Timing:
    return Timing(timing.wall * factor, timing.cpu * factor)


Timings: TypeAlias = dict[str, list[Timing]]


def in_turn(runs: Mapping[str, Callable[[], Any]], turns: int = TURNS) -> Timings:
    """What each took, run in turn, with memory as `simulate` has it. The first round warms up,
    unless it is the only one."""
    timings: Timings = {name: [] for name in runs}
    for turn in range(turns + (turns > 1)):
        for name, run in runs.items():
            with memory_of_a_swarm():
                began, cpu = time.perf_counter(), time.process_time()
                run()
                took = Timing(time.perf_counter() - began, time.process_time() - cpu)
            if turn or turns == 1:
                timings[name].append(took)
    return timings


def row(part: str, what: str, timings: Timings, slow: str, fast: str) -> Row:
    ratios = [a.wall / b.wall for a, b in zip(timings[slow], timings[fast], strict=True)]
    return {
        "part": part,
        "what": what,
        "seconds": _medians(timings, "wall"),
        "processor_seconds": _medians(timings, "cpu"),
        "ratio": statistics.median(ratios),
        "ratio_of": f"{slow} / {fast}",
    }


def _medians(timings: Timings, kind: str) -> dict[str, float]:
    each = {name: [getattr(took, kind) for took in times] for name, times in timings.items()}
    return {name: statistics.median(times) for name, times in each.items()}


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
            cpu = each["processor_seconds"][name]
            print(f"  {seconds:12.4f} s {cpu:10.4f} s of the processor  {name}")
        print(f"  {each['ratio']:12.1f}    {each['ratio_of']}")
        if "replayed" in each:
            print(f"  {each['replayed']:12}    steps of the stacked run by recorded plans")


if __name__ == "__main__":
    main()
