"""RelaySGD's mixing matrix W (paper, section 4 and definition E) and its effective spectral gap.

Over the last tau_max + 1 states of all peers, block row 0 averages what is tau_ij steps old, the
others shift: with delays tau_ij equal to the tree's hop distances.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from coordinator.trees import Tree

ITERATIONS = 40  # of the power method, each beginning where that of the step before ended


def mixing_matrix(tree: Tree) -> Tensor:
    """W, shape (n (tau_max + 1), n (tau_max + 1)), in float64."""
    n, size = tree.n, tree.n * (tree.diameter + 1)
    w = torch.zeros(size, size, dtype=torch.float64)
    for i in range(n):
        for j, _, hops in tree.walk(i):
            w[i, n * hops + j] = 1 / n
    w[n:, : size - n] = torch.eye(size - n, dtype=torch.float64)
    return w


@dataclass(frozen=True)
class Gap:
    """||W^m X - 1 pi^T X||^2 <= (1 - p) ||X - 1 pi^T X||^2; per step that is `rho`."""

    p: float
    m: int

    @property
    def rho(self) -> float:
        return self.p / self.m


def effective_gap(tree: Tree) -> Gap:
    """The best ratio p / m over all m, with p = 1 - ||W^m - 1 pi^T||^2.

    This is how [16, Assumption 4] of the paper, to which its lemma refers, counts p over m steps.
    """
    best = Gap(0.0, 1)
    for m, norm in enumerate(deviations(tree), start=1):
        if 1 / m <= best.rho:  # no larger m can be better
            return best
        best = max(best, Gap(1 - norm**2, m), key=lambda gap: gap.rho)
    raise AssertionError("the powers never end")


def literal_gap(tree: Tree) -> Gap:
    """The lemma as printed: p = (1 - |lambda_2|) / 2, m the least with norm <= (1 - p)^m."""
    magnitudes = torch.linalg.eigvals(mixing_matrix(tree)).abs().sort().values
    p = (1 - float(magnitudes[-2])) / 2
    return next(Gap(p, m) for m, norm in enumerate(deviations(tree), 1) if norm <= (1 - p) ** m)


def deviations(tree: Tree) -> Iterator[float]:
    """||W^m - 1 pi^T|| (spectral) for m = 1, 2, ..."""
    n = tree.n
    w = mixing_matrix(tree)
    limit = stationary(tree).repeat(len(w), 1)
    average, power = w[:n], w
    vector = torch.ones(len(w), dtype=torch.float64) + torch.arange(len(w)) / len(w)
    while True:
        rest = power - limit
        for _ in range(ITERATIONS):
            vector = rest.T @ (rest @ vector)
            vector /= vector.norm()
        yield float((rest @ vector).norm())
        power = torch.cat([average @ power, power[:-n]])  # all but the first block row shift


def stationary(tree: Tree) -> Tensor:
    """pi, the left eigenvector of W for eigenvalue 1, its entries summing to 1.

    Lemma 4: its first block is constant, and pi_k = sum over l >= k of W_l^T pi_0.
    """
    n = tree.n
    top = mixing_matrix(tree)[:n].view(n, -1, n)  # [i, delay, j]
    from_delay = top.flip(1).cumsum(1).flip(1).sum(0)  # [delay, j]: sum of W_l over l >= delay
    pi = torch.cat([torch.ones(1, n, dtype=torch.float64), from_delay[1:]]).flatten()
    return pi / pi.sum()
