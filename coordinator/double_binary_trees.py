"""Double binary trees: two trees over the same peers, in which nobody carries twice.

P. Sanders, J. Speck, J. L. Träff, "Two-tree algorithms for full bandwidth broadcast, reduction and
scan" (2009), in the layout of NCCL. Half of the model travels on each tree; as a peer is inner in
at most one of them, it has at most four edges, three as an inner peer and one as a leaf, and so
sends and receives at most two models a step. Peers are 0..n-1; edges come as (child, parent).
"""

from __future__ import annotations


def in_order_tree(n: int) -> list[tuple[int, int]]:
    """Tree A: binary, numbered in order, odd peers its leaves, rooted at peer 0.

    The lowest set bit of a peer's number is its height. Its parent is one level up on the side that
    keeps the numbers in order, or below it where that would be past the last peer. Peer 0 hangs
    above the whole.
    """
    return [(peer, _parent(peer, n)) for peer in range(1, n)]


def mirrored_tree(n: int) -> list[tuple[int, int]]:
    """Tree B: the image of tree A under `mirror`."""
    return [(mirror(child, n), mirror(parent, n)) for child, parent in in_order_tree(n)]


def mirror(peer: int, n: int) -> int:
    """Where `peer` of tree A stands in tree B: n-1-i for even n, i+1 (mod n) for odd n.

    Either way inner peers, which are even, land on odd ones; for odd n the last, on peer 0, whose
    only edge in tree A leads to the rest of it.
    """
    return n - 1 - peer if n % 2 == 0 else (peer + 1) % n


def _parent(peer: int, n: int) -> int:
    bit = peer & -peer
    above, below = (peer ^ bit) | (bit << 1), peer ^ bit
    return above if above < n else below
