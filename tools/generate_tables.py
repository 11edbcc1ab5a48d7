"""Fills in the tables of docs that follow from the code, or checks that they are fresh.

A table stands between `<!-- table: KIND NAME -->` and `<!-- end -->`. `options COMMAND` comes from
the command line itself, `metrics PROCESS` from the process's Prometheus registry, `algorithms all`
from the registry of algorithms and their docstrings, `tasks KIND` likewise from that of tasks,
`mutants PART` from the list of mutants; the text around tables is written by hand.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from enum import Enum
from importlib import import_module
from pathlib import Path
from typing import Any, get_args, get_origin

import mutants
from prometheus_client import CollectorRegistry
from pydantic import BaseModel
from typer.models import ArgumentInfo, OptionInfo

from coordinator.conductor import Conductor
from coordinator.member_metrics import FAMILIES, PREFIX, Family, FamilyKind
from coordinator.metrics import Metrics
from coordinator.store import Store
from peer.algorithms import ALGORITHMS
from peer.cli import COMMANDS
from peer.metrics import PeerMetrics
from peer.tasks.registry import BUILT_IN, load_task
from peer.training.optimizer import resolve
from relayswarm.config import OptimizerConfig, RunConfig, TaskConfig
from relayswarm.task import Task

DOCS = Path(__file__).resolve().parents[1] / "docs"
FILES = ("commands.md", "concepts.md", "mechanisms.md", "metrics.md", "tasks.md")
_TABLE = re.compile(r"(<!-- table: (\w+) (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(text: str) -> str:
    """The text with all its tables made anew. Raises KeyError for a table that nobody makes."""
    return _TABLE.sub(lambda found: f"{found[1]}\n{_make(found[2], found[3])}\n{found[4]}", text)


def _make(kind: str, name: str) -> str:
    match kind:
        case "options":
            return options_table(name)
        case "metrics":
            return metrics_table(name)
        case "algorithms":
            return algorithms_table()
        case "mutants":
            return mutants.table(name)
        case "tasks":
            return task_options_table() if name == "options" else task_optimizers_table()
    raise KeyError(f"table {kind}")


def options_table(command: str) -> str:
    """Options and arguments of a command, in the order of its help text."""
    module, _, name = COMMANDS[command][0].partition(":")
    function = getattr(import_module(module), name)
    parameters = inspect.signature(function, eval_str=True).parameters.values()
    return _table(("option", "default", "meaning"), [_option(p) for p in parameters])


def _option(parameter: inspect.Parameter) -> tuple[str, str, str]:
    """A parameter as typer reads it: `Annotated[TYPE, typer.Option(...)]`."""
    annotated, info = get_args(parameter.annotation)
    kind = next(iter(get_args(annotated)), annotated)  # of X | None: X
    if isinstance(info, ArgumentInfo):
        spelling = f"`{info.metavar}`"
    elif kind is bool:
        spelling = ", ".join(f"`{name}`" for name in _given(info) or _switches(parameter.name))
    else:
        name = next(iter(_given(info)), _dashed(parameter.name))
        spelling = f"`{name}` {info.metavar or _kind(kind)}"
    return spelling, _default(parameter.default, info.show_default), info.help


def _given(info: OptionInfo) -> list[str]:
    """Spellings of an option; within `Annotated` typer keeps the first in `default`."""
    known = (info.default, *(info.param_decls or ()))
    return [name for name in known if isinstance(name, str)]


def _dashed(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _switches(name: str) -> tuple[str, str]:
    return _dashed(name), _dashed(f"no_{name}")


def _kind(kind: Any) -> str:
    if get_origin(kind) is list:
        return _kind(get_args(kind)[0])
    if isinstance(kind, type) and issubclass(kind, Enum):
        return " or ".join(f"`{member.value}`" for member in kind)
    return {str: "TEXT", int: "INTEGER", float: "NUMBER"}.get(kind, "PATH")


def _default(value: Any, shown: bool | str) -> str:
    if isinstance(shown, str):
        return shown
    if value is inspect.Parameter.empty:
        return "required"
    if value is None or value is False or value == "":
        return ""
    return "on" if value is True else f"`{getattr(value, 'value', value)}`"


def algorithms_table() -> str:
    """Algorithms by name: what their classes say of themselves, and options with defaults."""
    rows = [
        (f"`{name}`", _first_line(kind), _options_of(options))
        for name, (kind, options) in sorted(ALGORITHMS.items())
    ]
    return _table(("algorithm", "what it does", "options and defaults"), rows)


def _first_line(kind: type[Any]) -> str:
    return (kind.__doc__ or "").partition("\n")[0]


def _options_of(options: type[Any]) -> str:
    defaults = options()
    known = (field.name for field in dataclasses.fields(options))
    return ", ".join(f"`{name} = {_toml(getattr(defaults, name))}`" for name in known)


def _toml(value: Any) -> str:
    """A default as the run config would spell it."""
    return "unset" if value is None else json.dumps(value)


def task_options_table() -> str:
    """Built-in tasks by name: what their classes say of themselves, and options with defaults."""
    rows = [
        (f"`{name}`", _first_line(kind), _fields_of(kind.Options))
        for name, kind in _tasks().items()
    ]
    return _table(("task", "what is learnt", "options and defaults"), rows)


def task_optimizers_table() -> str:
    """What each built-in task has in `[optimizer]`, where its options are not set."""
    rows = []
    for name, kind in _tasks().items():
        settings = resolve(OptimizerConfig(), kind({}).optimizer_defaults())
        rows.append((f"`{name}`", settings.describe(None)))
    return _table(("task", "optimizer"), rows)


def _tasks() -> dict[str, type[Task]]:
    return {name: type(load_task(TaskConfig(name=name))) for name in sorted(BUILT_IN)}


def _fields_of(options: type[BaseModel]) -> str:
    fields = options.model_fields.items()
    return ", ".join(f"`{name} = {_toml(field.default)}`" for name, field in fields) or "none"


def metrics_table(process: str) -> str:
    """Metrics of a `peer` or the `coordinator`, in the order in which they are registered; those of
    a `member` are what the coordinator passes on."""
    if process == "member":
        return _table(("metric", "type", "labels"), _member_rows())
    rows = [
        (f"`{family.name}{'_total' * (family.type == 'counter')}`", family.type, labels, help_text)
        for family, labels, help_text in _families(_registry(process))
    ]
    return _table(("metric", "type", "labels", "meaning"), rows)


def _member_rows() -> Iterator[tuple[str, str, str]]:
    for family in (Family("info", FamilyKind.GAUGE), *FAMILIES.values()):
        name = f"{PREFIX}{family.name}{'_total' * (family.kind is FamilyKind.COUNTER)}"
        labels = ", ".join(f"`{label}`" for label in ("run", "peer", *family.labels))
        yield f"`{name}`", family.kind.value, labels


def _registry(process: str) -> CollectorRegistry:
    if process == "peer":
        return PeerMetrics().registry
    return Metrics(Conductor(RunConfig(), Store(None))).registry


def _families(registry: CollectorRegistry) -> Iterator[tuple[Any, str, str]]:
    """Our own, with their labels; those of the process as such are prometheus_client's."""
    for collector in list(registry._collector_to_names):
        for family in collector.collect():
            if family.name.startswith("relayswarm_") and not family.name.startswith(PREFIX):
                labels: Sequence[str] = getattr(collector, "_labelnames", ())
                yield family, ", ".join(f"`{name}`" for name in labels), family.documentation


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *([_escaped(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _escaped(cell: str) -> str:
    return cell.replace("|", "\\|")


def main() -> int:
    """Return 0, or 1 when `--check` finds stale tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="change nothing, say what is stale")
    check = parser.parse_args().check
    stale = [path for path in (DOCS / name for name in FILES) if _is_stale(path)]
    for path in stale:
        if check:
            print(f"{path.name} is stale: run make docs", file=sys.stderr)
        else:
            path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")
    return 1 if check and stale else 0


def _is_stale(path: Path) -> bool:
    text = path.read_text(encoding="utf-8")
    return filled(text) != text


if __name__ == "__main__":
    sys.exit(main())
