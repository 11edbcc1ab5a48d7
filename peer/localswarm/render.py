"""A run as text for people: table of peers, trees, one-line messages, summary.

What belongs here: from what is known to something rich can print. When it is printed is the
business of `display`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.filesize import decimal
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from peer.algorithms.core import peer_order
from peer.outcome import shown
from peer.progress import PeerProgress, Progress

TREES_BESIDE = 16
"""Up to so many peers their trees are shown beside the table."""


def live_view(progress: Progress) -> RenderableType:
    """Everything about a run that is under way."""
    table = peer_table(progress)
    lines = [Text(headline_of(progress), style="dim")]
    if progress.swarm:
        lines.append(Text(swarm_line(progress.swarm)))
    topology = progress.topology
    if topology is None or len(progress.peers) > TREES_BESIDE:
        return Group(table, *lines)
    side = Table.grid(padding=(0, 4, 0, 0))
    side.add_row(table, Group(*trees(topology)))
    return Group(side, *lines)


def peer_table(progress: Progress) -> Table:
    """A row for each peer, in visiting order."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("peer")
    table.add_column("step", justify="right")
    table.add_column("", width=16)
    for name, width in (("loss", 8), ("models", 8), ("sent", 9)):
        table.add_column(name, justify="right", min_width=width)
    table.add_column("state", min_width=10)
    for peer in progress.in_order:
        bar = ProgressBar(total=progress.steps, completed=peer.step, width=16)
        table.add_row(peer.id, f"{peer.step}/{progress.steps}", bar, *_figures(peer))
    return table


def _figures(peer: PeerProgress) -> tuple[str, str, str, Text]:
    styles = {"training": "green", "averaging": "green", "finished": "blue"}
    style = "red" if peer.exited else styles.get(peer.state, "yellow")
    counted = f"{peer.models_counted} of {peer.swarm_size}" if peer.swarm_size else ""
    sent = decimal(peer.bytes_sent) if peer.bytes_sent else ""
    loss = shown("loss", peer.loss) if peer.losses else ""
    return loss, counted, sent, Text(peer.state, style=style)


def headline_of(progress: Progress) -> str:
    """What is going on, in a line."""
    topology = progress.topology
    if topology is None:
        return waiting_line(progress)
    return topology_line(topology)


def waiting_line(progress: Progress) -> str:
    """Who has yet to come before the run can begin."""
    missing = progress.missing
    if not missing:
        return "all peers have come; waiting for the topology"
    names = ", ".join(missing[:8]) + (", ..." if len(missing) > 8 else "")
    return f"waiting for {len(missing)} of {len(progress.expected)} peers: {names}"


def topology_line(topology: Mapping[str, Any]) -> str:
    """An epoch of topology in a line."""
    count = len(topology["trees"])
    tree = "tree" if count == 1 else f"{count} trees"
    notes = "".join(f"; {note}" for note in topology["notes"])
    return (
        f"epoch {topology['epoch']['number']} ({topology['reason']}): "
        f"{tree} of {len(topology['members'])} peers, root {topology['root']}, "
        f"diameter {topology['diameter']}, learning-rate factor {topology['lr_factor']}{notes}"
    )


def swarm_line(swarm: Mapping[str, Any]) -> str:
    """The swarm's metrics, as its peers know them, in a line."""
    values = (f"{name} {shown(name, value)}" for name, value in swarm["metrics"].items())
    return f"swarm at step {swarm['step']}: {', '.join(values)} (mean of {swarm['peers']} peers)"


def step_line(progress: Progress) -> str:
    """How far all peers are, in a line."""
    living = [peer for peer in progress.in_order if peer.exited is None]
    losses = [peer.loss for peer in living if peer.loss is not None]
    counted = min((peer.models_counted for peer in living), default=0)
    size = max((peer.swarm_size for peer in living), default=0)
    line = f"step {progress.steps_done} of {progress.steps}"
    if losses:
        line += f": training loss {min(losses):.3g} to {max(losses):.3g}"
    return f"{line}, at least {counted} of {size} models in each average"


def exit_lines(event: Mapping[str, Any]) -> Iterable[str]:
    """What to say of a process that ended before its time."""
    name = event.get("peer", "coordinator")
    yield f"{name} ended before its time (exit code {event['exit_code']}); its log ends with:"
    yield from (f"    {line}" for line in event["stderr"] or ["(nothing)"])


def trees(topology: Mapping[str, Any]) -> list[Tree]:
    """The trees of a `topology` event, drawn from their roots down."""
    edges = [[(u, v) for u, v in tree] for tree in topology["trees"]]
    roots = [topology["root"], *(_inner_end(tree) for tree in edges[1:])]
    names = ["tree"] if len(edges) == 1 else [f"tree {letter}" for letter in "AB"]
    return [_tree(*parts) for parts in zip(names, roots, edges, strict=True)]


def _inner_end(edges: Sequence[tuple[str, str]]) -> str:
    """The middle of a tree: a peer that is left when leaves are taken off, layer by layer."""
    near = _neighbours(edges)
    while len(near) > 2:
        for leaf in [peer for peer, others in near.items() if len(others) == 1]:
            for other in near.pop(leaf):
                near[other].remove(leaf)
    return min(near, key=peer_order)


def _neighbours(edges: Sequence[tuple[str, str]]) -> dict[str, set[str]]:
    near: dict[str, set[str]] = {}
    for u, v in edges:
        near.setdefault(u, set()).add(v)
        near.setdefault(v, set()).add(u)
    return near


def _tree(name: str, root: str, edges: Sequence[tuple[str, str]]) -> Tree:
    near = _neighbours(edges)
    drawn = Tree(Text.assemble((root, "bold"), (f"  root of the {name}", "dim")))
    stack = [(root, "", drawn)]
    while stack:
        peer, above, branch = stack.pop()
        for other in sorted(near.get(peer, set()) - {above}, key=peer_order):
            stack.append((other, peer, branch.add(other)))
    return drawn


def summary(report: Mapping[str, Any], directory: Path) -> RenderableType:
    """The report in a table: each peer's metrics, and what to hold them against."""
    names = list(report["peers"][0]["metrics"]) if report["peers"] else []
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("")
    for name in (*names, "missed", "sent"):
        table.add_column(name, justify="right")
    for peer in report["peers"]:
        missed = f"{peer['messages_missed']} of {peer['messages_expected']}"
        table.add_row(
            peer["id"], *_shown(peer["metrics"], names), missed, decimal(peer["bytes_sent"])
        )
    table.add_section()
    for text, key in _ROWS:
        if report[key] is not None:
            batch = report[key].get("batch_size")
            label = text if batch is None else f"{text}, batch {batch}"
            table.add_row(Text(label, style="bold"), *_shown(report[key], names))
    lines = [swarm_line(report["swarm_metrics"])] if report["swarm_metrics"] else []
    lines += [cost_line(report["simulation"])] if "simulation" in report else []
    return Group(table, *map(Text, lines), Text(f"report: {directory}", style="dim"))


def cost_line(cost: Mapping[str, Any]) -> str:
    """What a simulated run took."""
    sent = cost["models_sent_per_step"]
    return (
        f"{cost['virtual_seconds']:.6g} virtual seconds, {sent['mean']:.3g} models sent per step "
        f"(busiest peer: {sent['largest']:.3g}), {decimal(cost['bytes_sent'])} in all, "
        f"{cost['gradient_evaluations']} gradient evaluations"
    )


_ROWS = (
    ("worst peer", "worst"),
    ("mean of the peers", "mean"),
    ("their mean model", "consensus_model"),
    ("centralized", "baseline"),
    ("centralized", "baseline_small_batch"),
)


def _shown(metrics: Mapping[str, float | None], names: Sequence[str]) -> list[str]:
    return [shown(name, metrics[name]) if name in metrics else "" for name in names]
