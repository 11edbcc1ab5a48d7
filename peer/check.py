"""The command `check`: try out a run's task before anything is started."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from peer.commands import (
    Algorithm,
    Alpha,
    ConfigFile,
    DataDir,
    Device,
    Graph,
    Overrides,
    Peers,
    PrintJson,
    Seed,
    Steps,
    TaskName,
    resolve,
    warn,
)
from relayswarm.config import RunConfig

if TYPE_CHECKING:
    from peer.footprint import Footprint


def check(
    config: ConfigFile = None,
    peers: Peers = None,
    task: TaskName = None,
    algorithm: Algorithm = None,
    graph: Graph = None,
    steps: Steps = None,
    alpha: Alpha = None,
    seed: Seed = None,
    set_: Overrides = None,
    data_dir: DataDir = None,
    device: Device = "auto",
    bandwidth: Annotated[
        str | None,
        typer.Option(
            metavar="BITS", help="Each peer's, in bits/s such as 100M: say what a step takes."
        ),
    ] = None,
    as_json: PrintJson = False,
) -> None:
    """Find what is wrong with a run and its task in seconds; say what a step takes."""
    given = {"peers": peers, "task": task, "algorithm": algorithm, "graph": graph}
    numbers = {"steps": steps, "alpha": alpha, "seed": seed}
    resolved = resolve(config, set_, {**given, **numbers})
    from peer.footprint import bits_per_second, footprint
    from peer.law import file_digest
    from peer.localswarm.session import check_settings, lay_out_run, usable_device
    from peer.rehearsal import rehearse

    rate = None if bandwidth is None else bits_per_second(bandwidth)
    check_settings(resolved)
    layout = lay_out_run(resolved)
    found = rehearse(resolved, data_dir, usable_device(device))
    topology = {
        "graph": resolved.topology.graph,
        "tree": resolved.topology.tree,
        "diameter": layout.diameter,
        "neighbours": max(len(layout.neighbours(peer)) for peer in layout.members),
        "notes": list(layout.notes),
    }
    exchanges = _exchanges(resolved, found, footprint(resolved, layout), rate)
    file = resolved.task.file
    digest = None if file is None else file_digest(Path(file))
    if as_json:
        event = {"event": "checked", **asdict(found), "topology": topology, "exchanges": exchanges}
        about = {"task_digest": digest, "config": resolved.model_dump(mode="json")}
        typer.echo(json.dumps({**event, **about}))
        return
    warn([resolved])
    for warning in (*found.warnings, *layout.notes):
        typer.echo(f"warning: {warning}", err=True)
    typer.echo(f"{found.place}: the task {resolved.task.name} can be trained")
    for name, text in (*_lines(resolved, found, topology), *_costs(resolved, exchanges)):
        typer.echo(f"  {name:<12}{text}")
    if digest is not None:
        typer.echo(f"  {'digest':<12}{digest}")


def _lines(config: RunConfig, found: Any, topology: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "model", _model(found)
    yield "bytes", f"{found.model_bytes:,} ({found.dtype}), {found.message_bytes:,} in a message"
    shards, fewest, most = config.shards, min(found.samples), max(found.samples)
    looked = "" if len(found.samples) == shards else f"; {len(found.samples)} were looked at"
    yield "data", f"{shards} shards of {fewest:,} to {most:,} samples{looked}"
    local = config.algorithm.local_steps
    yield "step", f"{_seconds(found.seconds_per_step)} for {_number(local, 'local step')}"
    when = f"after {_number(found.steps, 'step')} alone"
    yield "evaluation", f"{_seconds(found.seconds_per_evaluation)}; {when} {_metrics(found)}"
    yield "optimizer", found.optimizer.describe(config.steps)
    peers, steps = _number(config.peers, "peer"), _number(config.steps, "step")
    yield "run", f"{config.algorithm.name}, {peers}, {steps}, batches of {config.data.batch_size}"
    of_tree = (
        f"diameter {topology['diameter']}, at most {_number(topology['neighbours'], 'neighbour')}"
    )
    yield "topology", f"{topology['tree']} on {topology['graph']}: {of_tree}"
    total = found.seconds_per_step * config.steps
    yield "time", f"about {_seconds(total)} of training for each peer, and the exchanges"


def _model(found: Any) -> str:
    buffers = found.elements - found.shared_parameters
    text = f"{found.parameters:,} parameters"
    if found.shared_parameters < found.parameters:
        text += f", {found.shared_parameters:,} of them shared"
    if buffers:
        text += f" and {buffers:,} elements of buffers"
    return text + (f"; {found.frozen_parameters:,} frozen" if found.frozen_parameters else "")


def _exchanges(
    config: RunConfig, found: Any, taken: Footprint, rate: float | None
) -> dict[str, Any]:
    """What they take: in models, in bytes, and in seconds at a rate (bits/s)."""
    sent, size = taken.sent, found.message_bytes
    models = taken.memory_models
    known: dict[str, Any] = {
        "memory_models": models,
        "memory_bytes": None if models is None else models * found.model_bytes,
        "models_sent_per_step": asdict(sent),
        "bytes_sent_per_step": {"mean": sent.mean * size, "largest": sent.largest * size},
    }
    if rate is None:
        return known
    transfer_s, train_s = taken.transfer_s(size, rate), found.seconds_per_step
    hidden = bool(config.algorithm.overlap)
    step_s = max(transfer_s, train_s) if hidden else transfer_s + train_s
    return known | {"bits_per_s": rate, "transfer_seconds": transfer_s, "step_seconds": step_s}


def _costs(config: RunConfig, exchanges: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if exchanges["memory_models"] is None:
        yield "memory", "no bound is known for methods of pairs"
    else:
        copies, size = exchanges["memory_models"], exchanges["memory_bytes"]
        yield "memory", f"at most {copies} times what is shared, {size:,} bytes, beside training"
    sent, models = exchanges["bytes_sent_per_step"], exchanges["models_sent_per_step"]
    busiest = f"the busiest peer {sent['largest']:,.0f} ({models['largest']:.3g})"
    yield "sent", f"{sent['mean']:,.0f} bytes a step ({models['mean']:.3g} models), {busiest}"
    if "bits_per_s" in exchanges:
        whole, part = exchanges["step_seconds"], exchanges["transfer_seconds"]
        how = "beside it" if config.algorithm.overlap else "after it"
        rate = f"{exchanges['bits_per_s'] / 1e6:,g} Mbit/s"
        text = f"{_seconds(whole)} a step: training, and {_seconds(part)} of transfer {how}"
        yield "network", f"at {rate} {text}"


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def _metrics(found: Any) -> str:
    shown = (
        f"{name} {'not finite' if value is None else f'{value:.4g}'}"
        for name, value in found.metrics.items()
    )
    return ", ".join(shown)


def _seconds(value: float) -> str:
    if value >= 120:
        return f"{value / 60:,.0f} min"
    return f"{value:.1f} s" if value >= 1 else f"{value * 1000:.3g} ms"
