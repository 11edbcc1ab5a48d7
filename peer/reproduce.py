"""The command `reproduce`: run a report's run again, and hold the two reports side by side.

The config comes from the report's manifest, so what is reproduced is what was run, whatever
became of the file it was started with. Metrics have to be equal (or within a tolerance), and where
the run promised it, the peers' final models bit by bit.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from peer.commands import AsJson, DataDir, Device
from peer.outcome import shown
from peer.report_files import MANIFEST, MODELS, REPORT, ReportDir, config_of, read
from relayswarm.config import RunConfig
from relayswarm.errors import ConfigError, ExitCode

ROWS = ("worst", "mean", "consensus_model", "baseline", "baseline_small_batch")


@dataclass(frozen=True, slots=True)
class Compared:
    """One thing that was compared; `before` and `after` for people."""

    what: str
    before: str
    after: str
    same: bool


def reproduce(
    report: ReportDir,
    output: Annotated[
        Path | None, typer.Option(help="Keep the new report here.", show_default="not kept")
    ] = None,
    tolerance: Annotated[
        float, typer.Option(min=0.0, help="Relative difference of metrics to accept.")
    ] = 0.0,
    data_dir: DataDir = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Run a report's run again; exit code 0 if the results are the same, else 1."""
    manifest = read(report, MANIFEST)
    config = config_of(manifest, report)
    with tempfile.TemporaryDirectory(prefix="relayswarm-") as temporary:
        place = output or Path(temporary)
        if place.resolve() == report.resolve():
            remedy = "choose another folder"
            raise ConfigError("--output", str(output), "is the report itself", remedy)
        ended = _rerun(config, manifest, read(report, REPORT), place, device, data_dir)
        if ended is not ExitCode.DONE:
            raise typer.Exit(ended)
        compared = list(compare(report, place, tolerance))
        _show(compared, _remarks(manifest, read(place, MANIFEST)), as_json=as_json)
    raise typer.Exit(ExitCode.DONE if all(c.same for c in compared) else ExitCode.DIFFERENT)


def compare(before: Path, after: Path, tolerance: float = 0.0) -> Iterator[Compared]:
    """Everything that has to be the same in two reports of the same run."""
    old, new = read(before, REPORT), read(after, REPORT)
    manifest = read(before, MANIFEST)
    yield from _metrics(old, new, tolerance)
    yield _equal("shards' digests", manifest["shards"], read(after, MANIFEST)["shards"])
    if "simulation" in old and "simulation" in new:
        yield _equal("cost", old["simulation"], new["simulation"])
    if manifest["config"]["deterministic"] or manifest["engine"] == "simulator":
        yield from _models(before / MODELS, after / MODELS)


def _metrics(
    old: Mapping[str, Any], new: Mapping[str, Any], tolerance: float
) -> Iterator[Compared]:
    pairs = [(row.replace("_", " "), old.get(row), new.get(row)) for row in ROWS]
    later = {peer["id"]: peer for peer in new["peers"]}
    for peer in old["peers"]:
        other = later.pop(peer["id"], {"metrics": {}, "steps": 0})
        pairs.append((peer["id"], peer["metrics"], other["metrics"]))
        if peer["steps"] != other["steps"]:
            yield _equal(f"{peer['id']}: steps", peer["steps"], other["steps"])
    for peer_id in later:
        yield Compared(peer_id, "not there", "finished", same=False)
    for name, first, second in pairs:
        known = first or {}
        for metric in known:
            yield _close(f"{name}: {metric}", metric, known, second or {}, tolerance)


def _close(
    what: str,
    metric: str,
    first: Mapping[str, Any],
    second: Mapping[str, Any],
    tolerance: float,
) -> Compared:
    a, b = first[metric], second.get(metric)
    same = a == b
    if not same and a is not None and b is not None:
        same = math.isclose(a, b, rel_tol=tolerance, abs_tol=0.0)
    if same:
        return Compared(what, shown(metric, a), shown(metric, b), same=True)
    return Compared(what, repr(a), repr(b), same=False)


def _equal(what: str, a: object, b: object) -> Compared:
    return Compared(what, "as before", "the same" if a == b else f"{b} in place of {a}", a == b)


def _models(before: Path, after: Path) -> Iterator[Compared]:
    """Whether the final models' files hold the same bits."""
    from safetensors.torch import load_file
    from torch import equal, uint8

    for path in sorted(before.glob("*.safetensors")):
        other = after / path.name
        old, new = load_file(path), load_file(other) if other.exists() else {}
        same = old.keys() == new.keys() and all(
            old[name].dtype == new[name].dtype
            and old[name].shape == new[name].shape
            and equal(old[name].reshape(-1).view(uint8), new[name].reshape(-1).view(uint8))
            for name in old
        )
        after_text = "the same bits" if same else "other bits" if new else "missing"
        yield Compared(f"{path.stem}: model", "as before", after_text, same)


def _rerun(
    config: RunConfig,
    manifest: Mapping[str, Any],
    report: Mapping[str, Any],
    place: Path,
    device: str,
    data_dir: Path | None,
) -> ExitCode:
    """As it was run then: simulated, or as processes; with baselines if there were any."""
    from peer.localswarm import session

    stacked = report.get("simulation", {}).get("stacked", False)
    options = session.SessionOptions(
        place,
        device,
        data_dir,
        baseline=report.get("baseline") is not None,
        stacked="on" if stacked else "off",
    )
    simulated = manifest.get("engine") == "simulator"
    run: Callable[..., ExitCode] = session.simulate if simulated else session.up
    return run(config, options)


def _remarks(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What may explain a difference."""
    remarks = [
        f"{name} was {version}, is {new['versions'].get(name)}"
        for name, version in old.get("versions", {}).items()
        if new["versions"].get(name) != version
    ]
    if old["hardware"]["cpu"] != new["hardware"]["cpu"]:
        remarks.append(f"CPU was {old['hardware']['cpu']}, is {new['hardware']['cpu']}")
    if old["engine"] == "processes" and not old["config"]["deterministic"]:
        remarks.append("the run was not deterministic: processes take turns as they happen to")
    return remarks


def _show(compared: list[Compared], remarks: list[str], *, as_json: bool) -> None:
    if as_json:
        rows = [
            {"what": c.what, "before": c.before, "after": c.after, "same": c.same} for c in compared
        ]
        typer.echo(json.dumps({"event": "compared", "rows": rows, "remarks": remarks}))
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for column in ("", "report", "again", ""):
        table.add_column(column)
    for c in compared:
        mark = "[green]same[/]" if c.same else "[bold red]differs[/]"
        table.add_row(c.what, c.before, c.after, mark)
    console = Console()
    console.print(table)
    differ = sum(not c.same for c in compared)
    for remark in remarks if differ else ():
        console.print(f"note: {remark}", markup=False, highlight=False)
    verdict = "reproduced" if not differ else f"{differ} of {len(compared)} differ"
    console.print(verdict, style="bold")
