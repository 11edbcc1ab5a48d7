"""A report's page: what stands where. The look is `page.html`, a template that escapes everything.

One file that needs nothing else: no script, no address but those of the pictures within it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import tomli_w
import typer
from jinja2 import Environment, PackageLoader, StrictUndefined
from rich.filesize import decimal

from peer.outcome import shown
from peer.page import pictures
from peer.page.reading import ReadReport, read_report
from peer.report_files import ReportDir
from relayswarm.errors import ConfigError

NAME = "report.html"
LONGEST_TIME_LINE = 200  # lines; a picture shows the rest


def report(
    report_dir: ReportDir,
    output: Annotated[
        Path | None, typer.Option(help="File to write.", show_default=f"REPORT_DIR/{NAME}")
    ] = None,
) -> None:
    """Draw a report as one page with pictures."""
    place = output or report_dir / NAME
    try:
        write_page(report_dir, place)
    except OSError as error:
        problem, remedy = f"cannot be written ({error.strerror or error})", "name another file"
        raise ConfigError("--output", str(place), problem, remedy) from error
    typer.echo(f"{place}: open it in a browser")


def write_page(directory: Path, path: Path) -> None:
    """Write the page of the report in a folder. Raises ConfigError if that is none, and OSError if
    the file cannot be written."""
    path.write_text(render(read_report(directory)), encoding="utf-8")


def render(run: ReadReport) -> str:
    """The page as text."""
    environment = Environment(
        loader=PackageLoader("peer.page", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    peers, told = run.outcome.peers, run.outcome.happenings
    return environment.get_template("page.html").render(
        title=_title(run),
        manifest=run.manifest,
        report=run.report,
        facts=list(_facts(run)),
        curves=list(pictures.curves(run.outcome, run.baseline)),
        topology=list(pictures.topology(run.outcome)),
        tree=_tree(run),
        messages=list(pictures.losses_of_messages(peers)),
        message_text=_messages(run),
        time_line=list(pictures.time_line(run.outcome, run.clock)),
        happenings=[(f"{one.seconds:.2f}", one.peer, one.text) for one in told[:LONGEST_TIME_LINE]],
        left_out=max(0, len(told) - LONGEST_TIME_LINE),
        clock=run.clock,
        columns=_columns(run),
        rows=list(_rows(run)),
        config=tomli_w.dumps(run.outcome.config.model_dump(mode="json", exclude_defaults=True)),
    )


def _title(run: ReadReport) -> str:
    config = run.outcome.config
    title = f"{config.algorithm.name} on {config.task.name}, {config.peers} peers"
    return title if config.data.alpha is None else f"{title}, Dirichlet {config.data.alpha:g}"


def _facts(run: ReadReport) -> Iterator[tuple[str, str]]:
    """The figures at the top: what, how much."""
    report = run.report
    named = {
        "worst": "worst peer",
        "mean": "mean of the peers",
        "consensus_model": "their mean model",
        "baseline": "in one place",
    }
    for key, words in named.items():
        for name, value in (report[key] or {}).items():
            if name in report["worst"]:
                yield f"{name}, {words}", shown(name, value)
    expected = sum(peer["messages_expected"] for peer in report["peers"])
    missed = sum(peer["messages_missed"] for peer in report["peers"])
    if expected:
        yield "messages missed", f"{missed / expected:.1%}"
    yield "sent by all peers", decimal(sum(peer["bytes_sent"] for peer in report["peers"]))
    if run.outcome.simulation is not None:
        yield "virtual time", f"{run.outcome.simulation['virtual_seconds']:,.6g} s"
    yield "time taken", f"{report['wall_seconds']:,.1f} s"


def _tree(run: ReadReport) -> str:
    """What the last epoch of topology was, in a sentence."""
    epochs = run.manifest["topologies"]
    if not epochs:
        return "No epoch of topology came about."
    last, count = epochs[-1], len(epochs)
    which = "The only epoch" if count == 1 else f"The last of {count} epochs"
    return (
        f"{which} of topology: {len(last['members'])} peers, root {last['root']}, diameter "
        f"{last['diameter']}, learning-rate factor {last['lr_factor']}."
    )


def _messages(run: ReadReport) -> str:
    peers = run.report["peers"]
    expected = sum(peer["messages_expected"] for peer in peers)
    missed = sum(peer["messages_missed"] for peer in peers)
    timed_out = sum(peer["messages_timed_out"] for peer in peers)
    if not expected:
        return "This method expects no particular message."
    if not missed:
        return f"None of {expected:,} expected messages was missed."
    late = f", {timed_out:,} of them awaited until a deadline" if timed_out else ""
    return f"{missed:,} of {expected:,} expected messages were missed{late}."


def _columns(run: ReadReport) -> list[str]:
    epsilon = ["epsilon"] if _is_private(run) else []
    return ["peer", "steps", *_names(run), *epsilon, "missed", "waited", "sent"]


def _is_private(run: ReadReport) -> bool:
    return any(peer.privacy for peer in run.outcome.peers)


def _names(run: ReadReport) -> list[str]:
    """Of what was measured, by whoever measures."""
    return list(next((peer.metrics for peer in run.outcome.peers if peer.metrics), {}))


def _rows(run: ReadReport) -> Iterator[list[str]]:
    for peer in run.report["peers"]:
        yield [
            peer["id"],
            f"{peer['steps']:,}",
            *(
                shown(name, peer["metrics"][name]) if name in peer["metrics"] else ""
                for name in _names(run)
            ),
            *([_epsilon(peer.get("privacy"))] if _is_private(run) else []),
            f"{peer['messages_missed']:,} of {peer['messages_expected']:,}",
            f"{peer['waited_seconds']:,.1f} s",
            decimal(peer["bytes_sent"]),
        ]


def _epsilon(privacy: Mapping[str, Any] | None) -> str:
    """Of a peer's movements; nothing where they left as they are."""
    if privacy is None:
        return ""
    return "unbounded" if privacy["epsilon"] is None else f"{privacy['epsilon']:.3g}"
