"""Reading a report back from its folder, as far as a page shows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peer.baseline import Baseline
from peer.history import course_of, happenings_of, losses_of
from peer.outcome import PeerOutcome, RunOutcome
from peer.report_files import HISTORY, MANIFEST, REPORT, config_of, read
from relayswarm.errors import ConfigError


@dataclass(frozen=True, slots=True)
class ReadReport:
    """A report as it was written: `report` and `manifest` as they are, and the run they tell of,
    without models. `clock` is the unit of its time line."""

    report: Mapping[str, Any]
    manifest: Mapping[str, Any]
    outcome: RunOutcome
    baseline: Baseline | None
    clock: str


def read_report(directory: Path) -> ReadReport:
    """Raises ConfigError if a file is missing, is none of a report, or of a newer release."""
    report, manifest = read(directory, REPORT), read(directory, MANIFEST)
    config = config_of(manifest, directory)
    history = read(directory, HISTORY)
    try:
        courses = {entry["id"]: course_of(entry) for entry in history["peers"]}
        outcome = RunOutcome(
            config=config,
            peers=[_peer(entry, courses[entry["id"]]) for entry in report["peers"]],
            topologies=manifest["topologies"],
            wall_seconds=report["wall_seconds"],
            simulation=report.get("simulation"),
            happenings=happenings_of(history),
        )
        baseline = _baseline(report["baseline"], history["baseline"])
        return ReadReport(report, manifest, outcome, baseline, history["clock"])
    except (LookupError, TypeError, ValueError) as error:
        problem = f"{REPORT}, {MANIFEST} and {HISTORY} do not fit together ({error!r})"
        remedy = "give the folder of a report that nobody has edited"
        raise ConfigError("REPORT_DIR", str(directory), problem, remedy) from error


def _peer(entry: Mapping[str, Any], course: Mapping[str, Any]) -> PeerOutcome:
    own = {name: value for name, value in entry.items() if name != "waited_seconds"}
    return PeerOutcome(**own, waited_s=entry["waited_seconds"], **course)


def _baseline(entry: Mapping[str, Any] | None, curve: Mapping[str, Any]) -> Baseline | None:
    if entry is None:
        return None
    metrics = {name: value for name, value in entry.items() if name != "batch_size"}
    return Baseline(entry["batch_size"], metrics, losses_of(curve))
