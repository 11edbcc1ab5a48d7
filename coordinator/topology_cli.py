"""The command `relayswarm topology`: which tree would this graph give?

What belongs here: options, text output and exit codes. The answer itself comes from `topology`;
pictures come from `draw`, imported only when one is wanted, as it brings matplotlib and numpy.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import rich.tree
import typer
from rich.console import Console

from coordinator.graph_files import LabelledGraph, read_graph
from coordinator.graphs import GRAPH_NAMES, GraphError, build_graph
from coordinator.topology import Topology, TreeKind, build_topology
from coordinator.trees import Tree
from relayswarm.errors import ExitCode


def topology(
    graph: Annotated[
        str | None, typer.Option(help=f"Communication graph: {', '.join(GRAPH_NAMES)}.")
    ] = None,
    peers: Annotated[int | None, typer.Option(help="Number of peers.")] = None,
    seed: Annotated[int, typer.Option(help="Of random-regular and erdos-renyi.")] = 0,
    degree: Annotated[int, typer.Option(help="Of random-regular.")] = 3,
    probability: Annotated[float, typer.Option(help="Of an edge in erdos-renyi.")] = 0.5,
    graph_file: Annotated[
        Path | None,
        typer.Option(help="Edge list (`u v cost` a line) or GraphML (.graphml), for --graph."),
    ] = None,
    tree: Annotated[
        TreeKind | None,
        typer.Option(
            help="How the trees are found.", show_default="spanning-tree, or as the graph is named"
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    png: Annotated[Path | None, typer.Option(help="Draw into this PNG file.")] = None,
) -> None:
    """Show the tree along which peers on a communication graph would relay their models."""
    try:
        labelled = _graph(graph, peers, graph_file, seed, degree, probability)
        kind = tree or _kind_of(graph)
        found = build_topology(labelled.graph, kind)
        if png is not None:
            title = graph_file.name if graph_file else f"{graph}, {labelled.graph.n} peers"
            _draw(found, labelled.labels, png, title)
    except GraphError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(ExitCode.USAGE) from error
    if as_json:
        typer.echo(json.dumps(found.as_json(labelled.labels)))
    elif png is None:
        _show(found, labelled.labels)


def _graph(
    name: str | None,
    peers: int | None,
    file: Path | None,
    seed: int,
    degree: int,
    probability: float,
) -> LabelledGraph:
    if file is not None:
        if name not in (None, "file"):
            raise GraphError("--graph", name, "a graph file is given too", "give one of the two")
        labelled = read_graph(file)
        if peers not in (None, labelled.graph.n):
            problem = f"{file.name} has {labelled.graph.n} peers"
            raise GraphError("--peers", peers, problem, "leave it out")
        return labelled
    if name is None:
        raise GraphError("--graph", None, "no graph given", "give --graph NAME or --graph-file")
    if peers is None and name != "social-network":
        raise GraphError("--peers", None, "the number of peers is missing", "give --peers N")
    n = 32 if peers is None else peers
    graph = build_graph(name, n, seed=seed, degree=degree, probability=probability)
    return LabelledGraph(graph, tuple(range(n)))


def _kind_of(graph: str | None) -> TreeKind:
    """The graph that is the union of the two trees is there for them."""
    doubled = graph == TreeKind.DOUBLE_BINARY_TREES.value
    return TreeKind.DOUBLE_BINARY_TREES if doubled else TreeKind.SPANNING_TREE


def _draw(found: Topology, labels: tuple[int, ...], png: Path, title: str) -> None:
    from coordinator.draw import draw_topology

    try:
        draw_topology(found, labels, png, title)
    except OSError as error:
        problem = error.strerror or "cannot be written"
        raise GraphError("--png", str(png), problem, "give a file to write") from error


def _show(found: Topology, labels: tuple[int, ...]) -> None:
    """Each tree as text with what follows from it, wide enough for the deepest."""
    terminal = Console()
    console = Console(width=max(terminal.width, 4 * found.diameter + 40), highlight=False)
    for name, root, tree in zip("AB", found.roots, found.trees, strict=False):
        heading = "" if len(found.trees) == 1 else f"tree {name}: "
        console.print(f"{heading}{_facts(found, tree)}", soft_wrap=True)
        console.print(_text_tree(found, root, tree, labels))


def _facts(found: Topology, tree: Tree) -> str:
    factor = tree.lr_factor()
    most = max(map(len, tree.neighbours))
    return (
        f"{found.n} peers, {len(found.graph.edges)} edges in the graph; diameter {tree.diameter}, "
        f"at most {most} neighbours, learning-rate factor {factor} = {float(factor):.4g}"
    )


def _text_tree(found: Topology, root: int, tree: Tree, labels: tuple[int, ...]) -> rich.tree.Tree:
    branches: dict[int, rich.tree.Tree] = {}
    for peer, before, _ in tree.walk(root):
        if not branches:
            branches[peer] = rich.tree.Tree(f"[bold]{labels[peer]}[/bold] (root)")
            continue
        cost = found.graph.costs[peer][before]
        note = f" [dim](cost {cost})[/dim]" if cost != 1 else ""
        branches[peer] = branches[before].add(f"{labels[peer]}{note}")
    return next(iter(branches.values()))
