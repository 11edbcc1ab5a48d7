"""The report of a run: files in one folder.

    report.json            the numbers: each peer's, their worst and mean, and the baseline's
    manifest.json          config, versions, data digests, hardware: what the numbers hold for
    history.json           how the run went, in steps and in time
    curves.png  tree.png   how training went, and along which tree
    report.html            all of it as a page for people (peer.page)
    model.safetensors      the mean of all final models, by tensor name; where peers share a part of
                           the model only, the mean of that part
    models/PEER.safetensors   each peer's own

What belongs here: the form of the report. Values come in as a `RunOutcome`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from peer.baseline import Baseline, mean_model
from peer.history import history
from peer.manifest import manifest
from peer.model_files import AVERAGE, PART, SHARED, metadata_of_report
from peer.outcome import BEFORE, Metrics, PeerOutcome, RunOutcome, headline, mean, newest, worst
from peer.report_files import HISTORY, MANIFEST, MODEL, MODELS, REPORT, SCHEMA_VERSION
from peer.training.files import apart
from relayswarm.errors import ConfigError

CURVES, TREE, PAGE = "curves.png", "tree.png", "report.html"


@dataclass(frozen=True, slots=True)
class Comparison:
    """What a swarm's peers are held against; None where it was not measured.

    `consensus_model` are the metrics of the mean of all final models. `baseline` is centralized
    training with the batch of the whole swarm, `small_batch` with that of one peer.
    """

    consensus_model: Metrics | None = None
    baseline: Baseline | None = None
    small_batch: Baseline | None = None


NO_BASELINE = "data are local, so there is no training in one place to compare with"


def prepare_directory(directory: Path) -> None:
    """Make the folder and check that it can be written, before a run that would end in it.

    What an earlier report left there is removed, so that nothing old is taken for new. Raises
    ConfigError that names `--report`.
    """
    try:
        (directory / MODELS).mkdir(parents=True, exist_ok=True)
        probe = directory / f".{REPORT}"
        probe.write_bytes(b"")
        probe.unlink()
        for name in (REPORT, MANIFEST, HISTORY, CURVES, TREE, PAGE, MODEL):
            (directory / name).unlink(missing_ok=True)
        for old in (directory / MODELS).glob("*.safetensors"):
            old.unlink()
    except OSError as error:
        raise ConfigError(
            "--report",
            str(directory),
            f"cannot be written ({error.strerror or error})",
            "choose a folder that you may write to",
        ) from error


def write_report(
    outcome: RunOutcome,
    directory: Path,
    comparison: Comparison,
    command: Sequence[str] = tuple(sys.argv),
    fingerprint: int | None = None,
    shared_names: Collection[str] | None = None,
) -> dict[str, Any]:
    """Write the whole report; returns the content of report.json.

    `directory` is one that `prepare_directory` found fit. Models are written for the peers whose
    model is known; `fingerprint` is that of the task's model, and `shared_names` are the tensors
    that peers share, None if all.
    """
    content, made_of = summarize(outcome, comparison), manifest(outcome, command, fingerprint)
    losses = comparison.baseline.losses if comparison.baseline else ()
    _write_models(outcome, directory, content, made_of, shared_names)
    _write_json(directory / MANIFEST, made_of)
    _write_json(directory / HISTORY, history(outcome, losses))
    _write_json(directory / REPORT, content)
    _draw(outcome, directory, comparison)
    return content


def summarize(outcome: RunOutcome, comparison: Comparison) -> dict[str, Any]:
    """The content of report.json.

    Worst, mean, consensus model and baselines show the accuracy where the task has one, else all
    of its metrics; worst and mean also before averaging, where that was measured. A number that was
    not finite, and what was not measured, is null. Peers without data measure nothing. Of simulated
    runs there is also what they cost.
    """
    peers, sites = outcome.peers, outcome.sites
    names = headline(sites[0].metrics) if sites else ()
    weights = [peer.weight for peer in sites]
    measured = {name for peer in sites for name in peer.metrics}
    told = [*names, *(BEFORE + name for name in names if BEFORE + name in measured)]
    by_name = {name: [peer.metrics.get(name) for peer in sites] for name in told}
    return {
        "schema_version": SCHEMA_VERSION,
        "run_id": outcome.config.run_id,
        "algorithm": outcome.config.algorithm.name,
        "swarm_size": outcome.config.peers,
        "steps": outcome.config.steps,
        "wall_seconds": round(outcome.wall_seconds, 3),
        "topology_epochs": len(outcome.topologies),
        "waited_seconds": round(sum(peer.waited_s for peer in peers), 3),
        **({} if outcome.simulation is None else {"simulation": dict(outcome.simulation)}),
        "peers": [_peer(peer) for peer in peers],
        "worst": {name: worst(name, values) for name, values in by_name.items()},
        "mean": {name: mean(values) for name, values in by_name.items()},
        "weighted_mean": {name: mean(values, weights) for name, values in by_name.items()},
        "swarm_metrics": newest(peer.swarm_metrics for peer in peers),
        "consensus_model": _chosen(comparison.consensus_model, names),
        "baseline": _baseline(comparison.baseline, names),
        "baseline_small_batch": _baseline(comparison.small_batch, names),
        "notes": [NO_BASELINE] if outcome.config.data.is_local else [],
    }


def _peer(peer: PeerOutcome) -> dict[str, Any]:
    return {
        "id": peer.id,
        "weight": peer.weight,
        "steps": peer.steps,
        "local_steps": peer.local_steps,
        "metrics": dict(peer.metrics),
        "messages_sent": peer.messages_sent,
        "messages_retried": peer.messages_retried,
        "messages_expected": peer.messages_expected,
        "messages_missed": peer.messages_missed,
        "messages_timed_out": peer.messages_timed_out,
        "waited_seconds": round(peer.waited_s, 3),
        "bytes_sent": peer.bytes_sent,
        "privacy": peer.privacy,
        "swarm_metrics": peer.swarm_metrics,
    }


def _chosen(metrics: Metrics | None, names: Sequence[str]) -> dict[str, float | None] | None:
    return None if metrics is None else {name: metrics.get(name) for name in names}


def _baseline(baseline: Baseline | None, names: Sequence[str]) -> dict[str, Any] | None:
    if baseline is None:
        return None
    return {**(_chosen(baseline.metrics, names) or {}), "batch_size": baseline.batch_size}


def _write_models(
    outcome: RunOutcome,
    directory: Path,
    report: Mapping[str, Any],
    made_of: Mapping[str, Any],
    shared_names: Collection[str] | None,
) -> None:
    known = {peer.id: peer.model for peer in outcome.peers if peer.model is not None}
    for peer, model in known.items():
        metadata = metadata_of_report(report, made_of, peer)
        save_file(apart(model), directory / MODELS / f"{peer}.safetensors", metadata)
    if known:
        part = {} if shared_names is None else {PART: SHARED}
        metadata = metadata_of_report(report, made_of, AVERAGE) | part
        average = mean_model(list(known.values()), shared_names)
        save_file(average, directory / MODEL, metadata)


def _draw(outcome: RunOutcome, directory: Path, comparison: Comparison) -> None:
    from peer.page.page import write_page  # matplotlib takes half a second
    from peer.plots import draw_curves, draw_tree

    config = outcome.config
    title = f"{config.algorithm.name} on {config.task.name}, {config.peers} peers"
    if config.data.alpha is not None:
        title += f", Dirichlet {config.data.alpha:g}"
    draw_curves(outcome, comparison.baseline, directory / CURVES, title)
    if outcome.topologies:
        draw_tree(outcome.topologies[-1], directory / TREE, f"run {config.run_id}")
    if outcome.peers:
        write_page(directory, directory / PAGE)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
