"""An epoch's layout: what the config wants, and what stands in where it cannot be had."""

from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.graph_files import read_graph
from coordinator.graphs import GRAPH_NAMES, GraphError
from coordinator.members import natural_order
from coordinator.views import Layout, as_config_error, check_graph, lay_out, lay_out_tree
from peer.algorithms.core import peer_order
from relayswarm.config import RunConfig, parse


def peers(n: int) -> list[str]:
    return [f"peer-{k}" for k in range(n)]


def config(text: str = "", **topology: object) -> RunConfig:
    return parse(text, [f"topology.{key}={value}" for key, value in topology.items()])


def assert_consistent(layout: Layout) -> None:
    n = len(layout.members)
    for me in layout.members:
        for number, behind in enumerate(layout.trees(me)):
            assert sum(behind.values()) == n - 1
            assert all(me in layout.trees(k)[number] for k in behind)
        assert all(me in layout.neighbours(k) for k in layout.neighbours(me))
        row = layout.mixing(me)
        assert set(row) == {me, *layout.neighbours(me)}
        assert sum(row.values()) == 1
        assert all(layout.mixing(k)[me] == w for k, w in row.items())


@given(st.text("abc0123456789-._", max_size=8), st.text("abc0123456789-._", max_size=8))
def test_the_visiting_order_is_that_of_the_algorithms(a: str, b: str) -> None:
    assert natural_order(a) == peer_order(a)
    assert sorted([a, b], key=natural_order) == sorted([a, b], key=peer_order)


def test_peers_stand_in_visiting_order() -> None:
    layout = lay_out(config(graph="chain"), ["peer-10", "peer-2", "peer-1"])
    assert layout.members == ("peer-1", "peer-2", "peer-10")
    assert layout.root == "peer-1"
    assert layout.tree_edges == ((("peer-1", "peer-2"), ("peer-2", "peer-10")),)
    assert layout.graph_edges == layout.tree_edges[0]
    assert layout.trees("peer-2") == ({"peer-1": 1, "peer-10": 1},)
    assert layout.trees("peer-1") == ({"peer-2": 2},)
    assert layout.neighbours("peer-1") == ("peer-2",)
    assert layout.mixing("peer-1") == {"peer-1": Fraction(2, 3), "peer-2": Fraction(1, 3)}
    assert layout.diameter == 2
    assert layout.notes == ()


def test_the_learning_rate_factor_is_the_trees() -> None:
    assert lay_out(config(graph="chain"), peers(16)).lr_factor == Fraction(43, 8)
    assert lay_out(config(graph="chain"), peers(4)).lr_factor == Fraction(3, 2)
    overlapping = parse("[algorithm]\noverlap = true\n[topology]\ngraph = 'chain'")
    assert lay_out(overlapping, peers(4)).lr_factor == 1 + Fraction(2 * 10, 16)


@pytest.mark.parametrize("tree", ["spanning-tree", "double-binary-trees"])
@given(n=st.integers(1, 40), seed=st.integers(0, 5))
def test_whatever_the_number_of_peers_there_is_a_consistent_layout(
    tree: str, n: int, seed: int
) -> None:
    layout = lay_out(parse(f"seed = {seed}", [f"topology.tree={tree}"]), peers(n))
    assert len(layout.topology.trees) == (1 if tree == "spanning-tree" else 2)
    assert_consistent(layout)


def test_a_swarm_of_one_has_no_neighbours() -> None:
    layout = lay_out(config(graph="torus"), ["alice"])
    assert layout.trees("alice") == ({},)
    assert layout.neighbours("alice") == ()
    assert layout.mixing("alice") == {"alice": 1}
    assert (layout.diameter, layout.lr_factor, layout.notes) == (0, 1, ())
    assert layout.neighbourhoods() == {"alice": (frozenset(), frozenset())}


@pytest.mark.parametrize(
    ("graph", "n", "words"), [("random-regular", 7, "degree"), ("torus", 5, "rows times columns")]
)
def test_a_graph_that_does_not_exist_for_this_number_is_replaced(
    graph: str, n: int, words: str
) -> None:
    layout = lay_out(config(graph=graph), peers(n))
    (note,) = layout.notes
    assert words in note
    assert f"{graph!r} of these {n} peers" in note
    assert "candidate graph" in note
    assert_consistent(layout)


def test_double_binary_trees_bring_their_graph_where_it_lacks_their_edges() -> None:
    layout = lay_out(config(graph="ring", tree="double-binary-trees"), peers(8))
    assert "the graph lacks the edge" in layout.notes[0]
    assert len(layout.tree_edges) == 2
    assert set(layout.graph_edges) == {edge for tree in layout.tree_edges for edge in tree}
    assert lay_out(config(graph="complete", tree="double-binary-trees"), peers(8)).notes == ()


@pytest.mark.parametrize(
    ("weights", "diagonal"), [("metropolis", "1/3"), ("uniform", "1/3"), ("lazy", "2/3")]
)
def test_weights(weights: str, diagonal: str) -> None:
    chosen = parse(f"[algorithm]\nweights = '{weights}'\n[topology]\ngraph = 'ring'")
    assert lay_out(chosen, peers(5)).mixing("peer-0")["peer-0"] == Fraction(diagonal)


def test_weights_that_the_graph_does_not_allow_are_replaced() -> None:
    chosen = parse("[algorithm]\nweights = 'uniform'\n[topology]\ngraph = 'chain'")
    layout = lay_out(chosen, peers(3))
    assert "no uniform weights" in layout.notes[0]
    assert_consistent(layout)


# --- graphs from a file --------------------------------------------------------------------------


@pytest.fixture
def star_of_five(tmp_path: Path) -> Path:
    """A star around its third node, plus one edge between the last two."""
    path = tmp_path / "star.txt"
    path.write_text("10 30\n20 30\n40 30\n50 30 7\n40 50\n")
    return path


def on_file(path: Path, members: list[str]) -> Layout:
    return lay_out(config(graph="file", file=f"'{path}'"), members, read_graph(path))


def test_with_all_peers_there_the_kth_takes_the_kth_node(star_of_five: Path) -> None:
    layout = on_file(star_of_five, ["a", "b", "c", "d", "e"])
    assert layout.neighbours("c") == ("a", "b", "d", "e")
    assert ("c", "d") in layout.tree_edges[0]
    assert ("d", "e") in layout.tree_edges[0]  # cost 1 + 1 is less than 7
    assert layout.notes == ()


def test_when_some_are_missing_a_peer_keeps_the_node_of_its_number(star_of_five: Path) -> None:
    layout = on_file(star_of_five, ["peer-1", "peer-2", "peer-4"])
    assert layout.neighbours("peer-2") == ("peer-1", "peer-4")
    assert layout.notes == ()


@pytest.mark.parametrize(
    ("members", "words"),
    [
        (["peer-0", "peer-1", "peer-3"], "parts"),  # without the hub the file's graph falls apart
        (["peer-0", "peer-9"], "ids do not say"),
        (["a1", "b1", "c2"], "ids do not say"),
        (["alice", "bob"], "ids do not say"),
    ],
)
def test_a_file_that_cannot_be_followed_is_replaced(
    star_of_five: Path, members: list[str], words: str
) -> None:
    layout = on_file(star_of_five, members)
    assert words in layout.notes[0]
    assert_consistent(layout)


@pytest.mark.parametrize(
    ("topology", "words"),
    [
        ({"graph": "rng"}, "^graph = 'rng': unknown graph; .*ring"),
        ({"graph": "torus"}, "^peers = 7: a torus has"),
        ({"graph": "social-network"}, "^peers = 7: .* 32 peers"),
        ({"graph": "erdos-renyi", "probability": 0.001}, "^probability = 0.001: .* disconnected"),
        ({"graph": "file"}, "^topology.file = None: no file given"),
        (
            {"file": "'x.txt'"},
            "^topology.file = 'x.txt': not used, as .*'random-regular'; .*'file'",
        ),
    ],
)
def test_a_run_does_not_begin_on_another_graph_than_it_was_given(
    topology: dict[str, object], words: str
) -> None:
    with pytest.raises(GraphError, match=words):
        check_graph(parse("peers = 7", [f"topology.{k}={v}" for k, v in topology.items()]))


@pytest.mark.parametrize("peers", [1, 2, 5, 7, 8])
def test_random_regular_stands_for_sparse_graphs_of_any_number(peers: int) -> None:
    check_graph(parse(f"peers = {peers}"))


@pytest.mark.parametrize("name", sorted(set(GRAPH_NAMES) - {"random-regular"}))
def test_a_swarm_of_one_may_be_given_any_graph(name: str) -> None:
    check_graph(parse("peers = 1", [f"topology.graph={name}"]))


def test_a_file_must_have_a_node_for_each_peer(star_of_five: Path) -> None:
    graph = read_graph(star_of_five)
    for enough in (4, 5):
        check_graph(config(f"peers = {enough}", graph="file", file="star.txt"), graph)
    with pytest.raises(GraphError, match=r"^topology.file = 'star.txt': it has 5 nodes for 6 peer"):
        check_graph(config("peers = 6", graph="file", file="star.txt"), graph)


def test_the_config_has_its_own_names_for_what_is_wrong() -> None:
    error = as_config_error(GraphError("graph", "rng", "unknown graph", "use ring"))
    assert str(error) == "topology.graph = 'rng': unknown graph; use ring"
    assert as_config_error(GraphError("star.txt line 2", 0, "a", "b")).field == "star.txt line 2"


# --- digest --------------------------------------------------------------------------------------


def test_the_digest_tells_members_lives_and_trees_apart() -> None:
    chain, star = (lay_out(config(graph=g), peers(4)) for g in ("chain", "star"))
    lives = dict.fromkeys(chain.members, 1)
    digests = {
        chain.digest(lives),
        star.digest(lives),
        chain.digest(lives | {"peer-3": 2}),
        lay_out(config(graph="chain"), peers(3)).digest(lives),
    }
    assert len(digests) == 4
    assert all(0 <= digest < 2**64 for digest in digests)
    assert chain.digest(lives) == lay_out(config(graph="chain"), peers(4)[::-1]).digest(lives)


def test_weights_are_scaled_by_a_power_of_two_and_tell_epochs_apart() -> None:
    """peer-0 - peer-1 - peer-2, of 100, 600 and 50: their mean, 250, becomes 250 / 128."""
    given = {"peer-0": 100.0, "peer-1": 600.0, "peer-2": 50.0}
    layout = lay_out(config(graph="chain"), peers(3), weights=given)
    assert layout.weights_by_peer() == {peer: weight / 128 for peer, weight in given.items()}
    assert layout.weight_behind("peer-0") == ({"peer-1": 650 / 128},)
    assert layout.weight_behind("peer-1") == ({"peer-0": 100 / 128, "peer-2": 50 / 128},)
    # ages are 1 for the pairs of 0 and 2 alone: 1 + 2 * 100 * 50 / 750^2
    assert layout.lr_factor == 1 + Fraction(2 * 100 * 50, 750**2)
    lives, plain = dict.fromkeys(given, 1), lay_out(config(graph="chain"), peers(3))
    assert layout.digest(lives) != plain.digest(lives)
    assert layout.place_digest != plain.place_digest


def test_equal_weights_are_none() -> None:
    plain = lay_out(config(graph="chain"), peers(3))
    equal = lay_out(config(graph="chain"), peers(3), weights=dict.fromkeys(peers(3), 77.0))
    assert equal == plain
    assert plain.weights_by_peer() == {}
    assert plain.weight_behind("peer-1") == ()


def test_a_swarm_in_which_nobody_weighs_anything_is_laid_out_too() -> None:
    layout = lay_out(config(graph="chain"), peers(3), weights=dict.fromkeys(peers(3), 0.0))
    assert layout.weights_by_peer() == dict.fromkeys(peers(3), 0.0)
    assert layout.lr_factor == lay_out(config(graph="chain"), peers(3)).lr_factor


def test_a_tree_that_is_there_is_laid_out_as_it_is() -> None:
    tree, links = [("peer-1", "peer-10"), ("peer-2", "peer-1")], [("peer-2", "peer-10")]
    layout = lay_out_tree(config(), ["peer-10", "peer-2", "peer-1"], "peer-2", tree, links)
    assert layout.members == ("peer-1", "peer-2", "peer-10")
    assert layout.root == "peer-2"
    assert layout.tree_edges == ((("peer-1", "peer-2"), ("peer-1", "peer-10")),)
    assert set(layout.graph_edges) == {*layout.tree_edges[0], ("peer-2", "peer-10")}
    assert layout.lr_factor == lay_out(config(graph="star"), peers(3)).lr_factor
    assert_consistent(layout)
    assert lay_out_tree(config(), ["peer-3"], "peer-3", [], []).lr_factor == 1


@pytest.mark.parametrize(
    "tree",
    [
        [("peer-0", "peer-1")],
        [("peer-0", "peer-1"), ("peer-1", "peer-0")],
        [("peer-0", "peer-1"), ("peer-1", "peer-2"), ("peer-0", "peer-2")],
        [("peer-0", "peer-1"), ("peer-1", "stranger")],
        [("peer-0", "peer-1"), ("peer-2", "peer-2")],
    ],
)
def test_what_is_no_tree_of_the_peers_is_not_laid_out(tree: list[tuple[str, str]]) -> None:
    with pytest.raises(GraphError):
        lay_out_tree(config(), peers(3), "peer-0", tree, [])
