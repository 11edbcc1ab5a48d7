"""Sanders, Speck, Träff: an inner peer of one tree is a leaf of the other."""

import networkx as nx
import pytest

from coordinator.double_binary_trees import in_order_tree, mirror, mirrored_tree

SIZES = range(1, 70)


@pytest.mark.parametrize("n", SIZES)
def test_both_are_trees_over_all_peers(n: int) -> None:
    for edges in (in_order_tree(n), mirrored_tree(n)):
        graph = nx.Graph(edges)
        graph.add_nodes_from(range(n))
        assert len(edges) == n - 1
        assert sorted(graph) == list(range(n))
        assert nx.is_tree(graph)


@pytest.mark.parametrize("n", SIZES)
def test_every_peer_is_inner_in_at_most_one_tree(n: int) -> None:
    first, second = nx.Graph(in_order_tree(n)), nx.Graph(mirrored_tree(n))
    inner = [peer for peer in first if first.degree(peer) > 1 and second.degree(peer) > 1]
    assert inner == []


@pytest.mark.parametrize("n", SIZES)
def test_a_peer_sends_and_receives_at_most_two_models_a_step(n: int) -> None:
    half_models = dict.fromkeys(range(n), 0)
    for edges in (in_order_tree(n), mirrored_tree(n)):
        for u, v in edges:
            half_models[u] += 1
            half_models[v] += 1
    assert max(half_models.values()) <= 4


def test_layout_of_fourteen_peers() -> None:
    # The picture in NCCL: 0 over 8; 8 over 4 and 12; 4 over 2 and 6; 12 over 10 and 13.
    children: dict[int, list[int]] = {}
    for child, parent in in_order_tree(14):
        children.setdefault(parent, []).append(child)
    assert children == {
        0: [8],
        8: [4, 12],
        4: [2, 6],
        12: [10, 13],
        2: [1, 3],
        6: [5, 7],
        10: [9, 11],
    }


@pytest.mark.parametrize(("n", "peer", "image"), [(4, 0, 3), (4, 3, 0), (5, 0, 1), (5, 4, 0)])
def test_mirror_is_reflection_for_even_and_shift_for_odd(n: int, peer: int, image: int) -> None:
    assert mirror(peer, n) == image


@pytest.mark.parametrize("k", range(1, 9))
def test_height_is_logarithmic(k: int) -> None:
    depths = nx.single_source_shortest_path_length(nx.Graph(in_order_tree(2**k)), 0)
    assert max(depths.values()) == k
