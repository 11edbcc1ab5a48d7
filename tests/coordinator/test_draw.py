"""Pictures: they get written, for every size, and show each tree without overlaps."""

from pathlib import Path

import pytest
from PIL import Image

from coordinator.draw import ROOT_COLOUR, TREE_COLOURS, _layers, draw_topology
from coordinator.graphs import build_graph
from coordinator.topology import Topology, TreeKind, build_topology


def topology(name: str, n: int, kind: TreeKind = TreeKind.SPANNING_TREE) -> Topology:
    return build_topology(build_graph(name, n), kind)


def colours(path: Path) -> set[str]:
    with Image.open(path) as picture:
        found = picture.convert("RGB").getcolors(maxcolors=2**24)
    return {"#{:02X}{:02X}{:02X}".format(*rgb) for _, rgb in found or []}


@pytest.mark.parametrize("n", [1, 2, 9])
def test_one_tree_is_drawn_with_its_root(tmp_path: Path, n: int) -> None:
    path = tmp_path / "one.png"
    draw_topology(topology("ring", n), None, path, "ring")
    expected = {ROOT_COLOUR, TREE_COLOURS[0]} if n > 1 else {ROOT_COLOUR}
    assert expected <= colours(path)
    assert TREE_COLOURS[1] not in colours(path)


def test_two_trees_are_drawn_in_two_colours(tmp_path: Path) -> None:
    path = tmp_path / "two.png"
    found = topology("complete", 8, TreeKind.DOUBLE_BINARY_TREES)
    draw_topology(found, range(100, 108), path, "two trees")
    assert {ROOT_COLOUR, *TREE_COLOURS} <= colours(path)


@pytest.mark.parametrize("name", ["chain", "star", "torus", "social-network"])
def test_no_two_peers_of_a_tree_share_a_place(name: str) -> None:
    found = topology(name, 32)
    places = _layers(found.trees[0], found.root)
    assert len(set(places.values())) == 32
