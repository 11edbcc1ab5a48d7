"""Mixing matrices for the gossip family, and the least eigenvalue that decides which D2 may use.

What belongs here: W over a communication graph, symmetric and doubly stochastic, as exact fractions
(`float(w)` where floats are wanted). Row i maps each peer in N_i and i itself, ascending, to W_ij.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from fractions import Fraction

from coordinator.graphs import Graph, GraphError

Weights = dict[int, dict[int, Fraction]]

D2_BOUND = Fraction(-1, 3)
"""D2 converges if no eigenvalue of W is below this (Tang et al. 2018; RelaySGD, appendix D.4)."""

TOLERANCE = 1e-9  # of `lambda_min`; even rings sit on the bound itself


def metropolis_hastings(graph: Graph) -> Weights:
    """W_ij = 1 / (1 + max(deg_i, deg_j)) on edges; what is left of a row stays on i."""
    rows: Weights = {}
    for i in range(graph.n):
        row = {
            j: Fraction(1, 1 + max(graph.degree(i), graph.degree(j))) for j in graph.neighbours(i)
        }
        row[i] = 1 - sum(row.values(), Fraction(0))
        rows[i] = dict(sorted(row.items()))
    return rows


def uniform(graph: Graph) -> Weights:
    """W_ij = 1 / (1 + degree) for a peer and each neighbour: 1/3 on rings.

    Raises `GraphError` where degrees differ, for there the columns would not sum to one.
    """
    degrees = {graph.degree(i) for i in range(graph.n)}
    if len(degrees) > 1:
        problem = f"degrees differ (from {min(degrees)} to {max(degrees)})"
        raise GraphError("weights", "uniform", problem, "use metropolis-hastings")
    return metropolis_hastings(graph)  # which is that, for equal degrees


def lazy(graph: Graph) -> Weights:
    """(W + I) / 2 of Metropolis-Hastings W: no eigenvalue below 0, half the mixing."""
    return {
        i: {j: (w + (i == j)) / 2 for j, w in row.items()}
        for i, row in metropolis_hastings(graph).items()
    }


def auto(graph: Graph) -> Weights:
    """Metropolis-Hastings where D2 may use it, else lazy weights."""
    weights = metropolis_hastings(graph)
    return weights if lambda_min(weights) >= D2_BOUND - TOLERANCE else lazy(graph)


_BY_NAME: dict[str, Callable[[Graph], Weights]] = {
    "metropolis-hastings": metropolis_hastings,
    "uniform": uniform,
    "lazy": lazy,
    "auto": auto,
}
WEIGHT_NAMES: tuple[str, ...] = tuple(_BY_NAME)


def gossip_weights(graph: Graph, name: str) -> Weights:
    """The mixing matrix called `name` (one of `WEIGHT_NAMES`) over the graph."""
    if name not in _BY_NAME:
        raise GraphError("weights", name, "unknown weights", f"use one of {', '.join(_BY_NAME)}")
    return _BY_NAME[name](graph)


def lambda_min(weights: Mapping[int, Mapping[int, Fraction]]) -> float:
    """The least eigenvalue of a symmetric mixing matrix, to about 1e-9, from above.

    The Lanczos method in plain Python, since the coordinator goes without numpy: power iteration
    would need some n^2 steps on a chain or a ring, this some n. Vectors are not orthogonalised
    again; that repeats eigenvalues already found and leaves the least one right. Stops when 20
    steps more no longer move it. Each step costs one product with W: O(edges).
    """
    rows = [[(j, float(w)) for j, w in weights[i].items()] for i in range(len(weights))]
    diagonal, off_diagonal = [], [0.0]
    rng = random.Random(0)
    vector, before = _unit([rng.gauss(0.0, 1.0) for _ in rows])[0], [0.0] * len(rows)
    least = math.inf
    while True:
        image = [sum(w * vector[j] for j, w in row) for row in rows]
        alpha = sum(a * b for a, b in zip(image, vector, strict=True))
        diagonal.append(alpha)
        beta = off_diagonal[-1]
        rest = [c - alpha * v - beta * b for c, v, b in zip(image, vector, before, strict=True)]
        before = vector
        vector, beta = _unit(rest)
        exhausted = beta < 1e-12
        if exhausted or len(diagonal) % 20 == 0:
            previous, least = least, _least_of_tridiagonal(diagonal, off_diagonal)
            if exhausted or previous - least < TOLERANCE / 100:
                return least
        off_diagonal.append(beta)


def _unit(vector: list[float]) -> tuple[list[float], float]:
    norm = math.sqrt(sum(x * x for x in vector))
    return ([x / norm for x in vector] if norm else vector), norm


def _least_of_tridiagonal(diagonal: list[float], off_diagonal: list[float]) -> float:
    """By bisection on the signs of a Sturm sequence; `off_diagonal[k]` couples k-1 and k."""
    low, high = -1.0 - TOLERANCE, 1.0 + TOLERANCE  # a stochastic matrix has no other eigenvalues
    while high - low > TOLERANCE / 1000:
        middle = (low + high) / 2
        if _has_eigenvalue_below(middle, diagonal, off_diagonal):
            high = middle
        else:
            low = middle
    return high


def _has_eigenvalue_below(x: float, diagonal: list[float], off_diagonal: list[float]) -> bool:
    pivot = 1.0
    for alpha, beta in zip(diagonal, off_diagonal, strict=True):
        pivot = alpha - x - beta * beta / pivot
        if pivot <= 0:
            return True
    return False
