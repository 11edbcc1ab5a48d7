"""The command `export`: a model of a report as one file, with what it is written into it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from coordinator.stopping import higher_is_better
from peer.model_files import AVERAGE, PART, metadata_of_report
from peer.outcome import decisive, shown
from peer.report_files import MANIFEST, MODEL, MODELS, REPORT, ReportDir, config_of, read
from relayswarm.errors import ConfigError

BEST = "best"


def export(
    report_dir: ReportDir,
    output: Annotated[Path, typer.Option(help="File to write (safetensors).")],
    model: Annotated[
        str, typer.Option(metavar="average|best|PEER", help="Which of the report's models.")
    ] = AVERAGE,
) -> None:
    """Write the average of a run's models, the best or a peer's, as safetensors with metadata."""
    report, manifest = read(report_dir, REPORT), read(report_dir, MANIFEST)
    config_of(manifest, report_dir)
    chosen = choose(report, model)
    metadata = metadata_of_report(report, manifest, chosen)
    name = MODEL if chosen == AVERAGE else f"{MODELS}/{chosen}.safetensors"
    is_part = copy(report_dir / name, output, metadata)
    measured = dict(_measured(report, chosen))
    told = ", ".join(f"{name} {shown(name, value)}" for name, value in measured.items())
    which = AVERAGE if chosen == AVERAGE else f"model of {chosen}"
    which += " of the part that peers share" if is_part else ""
    typer.echo(f"{output}: {which}, run {report['run_id']}" + (f", {told}" if told else ""))


def choose(report: Mapping[str, Any], model: str) -> str:
    """`average` or a peer's id. Raises ConfigError for a model that the report has not got."""
    peers = [peer["id"] for peer in report["peers"]]
    if not peers:
        problem, remedy = "no peer of this run finished", "give the report of another run"
        raise ConfigError("--model", model, problem, remedy)
    if model == BEST:
        return best(report)
    if model != AVERAGE and model not in peers:
        known = ", ".join((AVERAGE, BEST, *peers))
        raise ConfigError("--model", model, "no model of this report", f"choose one of {known}")
    return model


def best(report: Mapping[str, Any]) -> str:
    """Which of all peers' models and their average was measured to be best: by accuracy, else by
    loss, else by the first metric of the task. The average where they are equal."""
    metric = decisive(next((p["metrics"] for p in report["peers"] if p["metrics"]), {}))
    if metric is None:
        return AVERAGE
    sign = 1 if higher_is_better(metric) else -1
    models = (AVERAGE, *(peer["id"] for peer in report["peers"]))
    known = {name: dict(_measured(report, name)).get(metric) for name in models}
    ranked = {name: sign * value for name, value in known.items() if value is not None}
    return max(ranked, key=lambda name: ranked[name], default=AVERAGE)


def _measured(report: Mapping[str, Any], model: str) -> Iterator[tuple[str, float | None]]:
    if model == AVERAGE:
        yield from (report["consensus_model"] or {}).items()
    for peer in report["peers"]:
        if peer["id"] == model:
            yield from peer["metrics"].items()


def copy(source: Path, output: Path, metadata: Mapping[str, str]) -> bool:
    """The tensors of one file in another, whole or not at all; returns whether they are but the
    part of a model that peers share, which then stays written in it. Raises ConfigError."""
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import load_file

    from peer.training.files import write_tensors

    try:
        tensors = load_file(source)
        with safe_open(source, "pt") as file:
            part = (file.metadata() or {}).get(PART)
    except (OSError, SafetensorError) as error:
        problem = f"its {source.name} cannot be read ({error})"
        remedy = "give the folder of a report that `up` or `simulate` wrote"
        raise ConfigError("REPORT_DIR", str(source.parent), problem, remedy) from error
    known = {} if part is None else {PART: part}
    write_tensors(output, tensors, {**metadata, **known}, "--output")
    return bool(known)
