"""The command `simulate`: one run with a report, or a sweep of many with a table."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, Self, TypeAlias, cast

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from peer.commands import (
    Algorithm,
    Alpha,
    AsJson,
    ConfigFile,
    DataDir,
    Device,
    Graph,
    Overrides,
    Peers,
    Report,
    Seed,
    Steps,
    TaskName,
    WithBaseline,
    warn,
)
from relayswarm.config import RunConfig
from relayswarm.errors import ConfigError
from relayswarm.settings import Override, load_over, overrides_in_force

if TYPE_CHECKING:
    from peer.simulator.stacked_training import Stacking

Axes: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--sweep", metavar="KEY=VALUE,VALUE", help="Run with each of these values. Repeatable."
    ),
]
Seeds: TypeAlias = Annotated[
    int | None, typer.Option(min=1, help="Run each combination with so many seeds.")
]
Output: TypeAlias = Annotated[
    Path | None, typer.Option(help="Folder of a sweep.", show_default="sweeps/RUN_ID")
]
Jobs: TypeAlias = Annotated[
    int | None, typer.Option(min=1, help="Runs at a time.", show_default="one for each core")
]
EngineName: TypeAlias = Annotated[
    str, typer.Option("--engine", help="local processes, or ray for a Ray cluster.")
]
Budgets: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--budget",
        metavar="NAME=NUMBER",
        help="Refuse what needs more: models_per_step, message_rounds_per_step. Repeatable.",
    ),
]
Stacked: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="auto|on|off",
        help="All peers train in one call: faster, the same up to rounding; bit for bit "
        "where deterministic = true.",
        show_default="auto in a sweep, else off",
    ),
]
Tune: TypeAlias = Annotated[
    bool, typer.Option("--tune", help="Find each combination's learning rate first.")
]
Target: TypeAlias = Annotated[
    float | None,
    typer.Option(help="Suboptimality to reach; --tune seeks it, the table says when it was."),
]
Rate: TypeAlias = Annotated[float | None, typer.Option("--lr", help="Learning rate.")]
ProblemFile: TypeAlias = Annotated[
    Path | None,
    typer.Option("--problem", metavar="FILE.NPZ", help="Quadratics and graph of a --trace."),
]
TraceFile: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--trace", metavar="FILE.NPZ", help="Write every model after every step, and no report."
    ),
]


def simulate(
    config: ConfigFile = None,
    peers: Peers = None,
    task: TaskName = None,
    algorithm: Algorithm = None,
    graph: Graph = None,
    steps: Steps = None,
    alpha: Alpha = None,
    seed: Seed = None,
    set_: Overrides = None,
    report: Report = None,
    as_json: AsJson = False,
    data_dir: DataDir = None,
    device: Device = "auto",
    baseline: WithBaseline = True,
    axes: Axes = None,
    seeds: Seeds = None,
    output: Output = None,
    jobs: Jobs = None,
    engine: EngineName = "local",
    budget: Budgets = None,
    tune: Tune = False,
    target: Target = None,
    stacked: Stacked = None,
    lr: Rate = None,
    problem: ProblemFile = None,
    trace: TraceFile = None,
) -> None:
    """Run a swarm on a virtual clock and network, and report as `up` does.

    With --sweep, --seeds, --tune or --target it runs many, and writes a table of them in place of
    a report; a sweep that was cut off goes on where it stopped. With --problem and --trace it runs
    a method on given quadratics, and writes down all models.
    """
    given = {"peers": peers, "task": task, "algorithm": algorithm, "graph": graph}
    if problem or trace:
        idle = {**given, "alpha": alpha, "seed": seed, "config file": config, "algorithm": None}
        _refuse_idle(idle)
        _trace(problem, algorithm, steps, lr, set_ or [], trace)
        return
    flags = {**given, "steps": steps, "alpha": alpha, "seed": seed}
    overrides = overrides_in_force(set_, {**flags, "lr": lr})
    resolved = load_over(config, overrides)
    how = _stacking(stacked)
    if axes or seeds or tune or target is not None:
        place = output or Path("sweeps") / resolved.run_id
        numbers: dict[str, Any] = {"jobs": jobs or _cores(), "tune": tune, "target": target}
        numbers["stacked"] = how or "auto"
        _sweep(
            config,
            overrides,
            axes or [],
            seeds or 1,
            budget or [],
            as_json,
            {"output": place, "data_dir": data_dir, "engine": engine, **numbers},
        )
        return
    from peer.localswarm import session

    warn([resolved])
    _refuse_over_budget(resolved, budget or [])
    place = report or Path("reports") / resolved.run_id
    options = session.SessionOptions(place, device, data_dir, as_json, baseline, how or "off")
    raise typer.Exit(session.simulate(resolved, options))


def _refuse_idle(flags: Mapping[str, object]) -> None:
    for name, value in flags.items():
        if value is not None:
            problem, remedy = "makes no difference to a trace", "leave it out"
            raise ConfigError(f"--{name}", str(value), problem, remedy)


def _trace(
    problem: Path | None,
    algorithm: str | None,
    steps: int | None,
    lr: float | None,
    overrides: Sequence[str],
    out: Path | None,
) -> None:
    if problem is None or out is None:
        missing = "--problem" if problem is None else "--trace"
        remedy = "give both the problem and the trace to write"
        raise ConfigError(missing, None, "missing", remedy)
    from peer.simulator.trace import run_trace

    run_trace(problem, algorithm, steps, lr, overrides, out)
    typer.echo(str(out))


def _stacking(given: str | None) -> Stacking | None:
    if given in ("auto", "on", "off", None):
        return cast("Stacking | None", given)
    raise ConfigError("--stacked", given, "unknown", "say auto, on or off")


def _refuse_over_budget(config: RunConfig, budgets: Sequence[str]) -> None:
    from peer.localswarm.session import check_settings
    from peer.sweep.budget import check_budgets, parse_budgets
    from peer.sweep.grid import Cell

    check_settings(config)
    check_budgets([Cell({}, config)], parse_budgets(budgets))


def _sweep(
    path: Path | None,
    overrides: Sequence[Override],
    axes: Sequence[str],
    seeds: int,
    budgets: Sequence[str],
    as_json: bool,
    options: dict[str, Any],
) -> None:
    from peer.localswarm.session import check_settings
    from peer.sweep.budget import parse_budgets
    from peer.sweep.grid import build_cells, parse_axis
    from peer.sweep.sweep import Options, sweep

    parsed = [parse_axis(text) for text in axes]
    cells = build_cells(path, overrides, parsed, seeds)
    for cell in cells:
        check_settings(cell.config)
    warn(cell.config for cell in cells)
    complete = Options(budgets=parse_budgets(budgets), **options)
    with _Bar(as_json=as_json) as bar:
        rows, files = sweep(cells, parsed, complete, bar)
    bar.end(complete.output, files, len(rows))


def _cores() -> int:
    """Those that this process may use, where the system can tell."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class _Bar:
    """How far a sweep is: a bar on terminals, else a line or a JSON object for each run."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._console = Console(stderr=as_json)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        self._bars = Progress(*columns, TimeElapsedColumn(), console=self._console)
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> Self:
        if self._is_live:
            self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._is_live:
            self._bars.stop()

    @property
    def _is_live(self) -> bool:
        return self._console.is_terminal and not self._as_json

    def __call__(self, what: str, which: str, done: int, total: int) -> None:
        if self._as_json:
            _print_json({"event": what, "name": which, "done": done, "total": total})
        elif not self._is_live:
            self._console.print(f"{what} {done} of {total}: {which}", highlight=False, markup=False)
        else:
            if what not in self._tasks:
                self._tasks[what] = self._bars.add_task(what, total=total)
            self._bars.update(self._tasks[what], completed=done, total=total)

    def end(self, output: Path, files: Sequence[str], rows: int) -> None:
        """Say what was written, and why there is no Parquet if there is none."""
        if self._as_json:
            _print_json({"event": "finished", "output": str(output), "files": list(files)})
            return
        say = cast("Any", self._console.print)
        say(f"{rows} rows: " + ", ".join(str(output / name) for name in files), markup=False)
        if not any(name.endswith(".parquet") for name in files):
            say(
                "no Parquet: pyarrow is not installed (pip install 'relayswarm[parquet]')",
                markup=False,
            )


def _print_json(event: dict[str, Any]) -> None:
    typer.echo(json.dumps(event))
