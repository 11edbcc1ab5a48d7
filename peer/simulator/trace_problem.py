"""The input of a numerical trace: quadratics, who talks to whom, what gets lost, in one .npz file.

Arrays, for n peers and dimension d (peers are the integers 0..n-1):

    A (n, d, d), b (n, d)    f_i(x) = ||A_i x + b_i||^2, of which every step takes the full gradient
    x0 (d,)                  where all start
    edges (m, 2)             the communication graph; for methods that relay it must be a tree
    edges_a, edges_b         (n-1, 2) each, in place of `edges`: trees for the model's two halves
    drops (T, n, n)          optional: the message from i to j in step t is lost
    interactions (K, 2)      for pairwise methods: initiator and partner, in order
    interaction_steps (K,)   optional: the local steps before each; else `algorithm.local_steps`
    lr (T,) or (K,)          optional: the rate of each step, or interaction, in place of --lr

Everything is checked here, so that whoever runs the trace need not. Errors name the array.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from coordinator.graphs import Edge, Graph, GraphError
from coordinator.trees import Tree
from relayswarm.errors import DataError

Floats: TypeAlias = NDArray[np.float64]
T = TypeVar("T")


@dataclass(frozen=True)
class TraceProblem:
    """What a trace starts from. Arrays have the shapes that this module's head says."""

    a: Floats
    b: Floats
    x0: Floats
    graph: Graph | None
    trees: tuple[Tree, ...]  # two, where edges_a and edges_b are given
    drops: NDArray[np.bool_] | None
    interactions: NDArray[np.int64] | None
    interaction_steps: NDArray[np.int64] | None
    lr: Floats | None

    @property
    def n(self) -> int:
        """Number of peers."""
        return len(self.a)


def refuse(name: str, value: object, problem: str, remedy: str) -> DataError:
    """The error that an array of the problem is unusable."""
    return DataError(f"problem.{name}", value, problem, remedy)


def load_problem(path: Path) -> TraceProblem:
    """Read and check a problem file. Raises DataError."""
    arrays = _read(path)
    a = _floats(arrays, "A", ("n", "d", "d"))
    n, d = len(a), a.shape[1]
    if a.shape != (n, d, d) or not a.size:
        raise refuse("A", a.shape, "not a square matrix for each peer", "give shape (n, d, d)")
    graph = _optional(arrays, "edges", lambda: _graph(n, _pairs(arrays, "edges")))
    return TraceProblem(
        a=a,
        b=_shaped(_floats(arrays, "b", ("n", "d")), "b", (n, d)),
        x0=_shaped(_floats(arrays, "x0", ("d",)), "x0", (d,)),
        graph=graph,
        trees=_two_trees(arrays, n),
        drops=_optional(arrays, "drops", lambda: _drops(arrays, n)),
        interactions=_optional(arrays, "interactions", lambda: _interactions(arrays, n, graph)),
        interaction_steps=_optional(arrays, "interaction_steps", lambda: _local_steps(arrays)),
        lr=_optional(arrays, "lr", lambda: _rates(arrays)),
    )


def tree_of(n: int, pairs: NDArray[np.int64] | Graph, name: str = "edges") -> Tree:
    """The tree that these edges are. Raises DataError where they are none."""
    edges = pairs.edges if isinstance(pairs, Graph) else [(int(u), int(v)) for u, v in pairs]
    return _mended(name, lambda: Tree(n, tuple((e[0], e[1]) for e in edges)))


def _read(path: Path) -> Mapping[str, NDArray[Any]]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (OSError, ValueError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        remedy = "write it with numpy.savez, numbers only"
        raise DataError("--problem", str(path), f"cannot be read ({error})", remedy) from error


def _array(arrays: Mapping[str, NDArray[Any]], name: str) -> NDArray[Any]:
    if name not in arrays:
        remedy = f"add it to the file, which has {', '.join(sorted(arrays)) or 'no arrays'}"
        raise refuse(name, None, "missing", remedy)
    return arrays[name]


def _optional(arrays: Mapping[str, NDArray[Any]], name: str, read: Callable[[], T]) -> T | None:
    return read() if name in arrays else None


def _floats(arrays: Mapping[str, NDArray[Any]], name: str, shape: tuple[str, ...]) -> Floats:
    array = _array(arrays, name)
    wanted = f"give real numbers of shape ({', '.join(shape)}{',' if len(shape) == 1 else ''})"
    if array.dtype.kind not in "fiu" or array.ndim != len(shape):
        raise refuse(name, f"{array.dtype} of shape {array.shape}", "not that", wanted)
    if not np.isfinite(array).all():
        raise refuse(name, "nan or inf", "not finite", wanted)
    return array.astype(np.float64)


def _shaped(array: Floats, name: str, shape: tuple[int, ...]) -> Floats:
    if array.shape != shape:
        raise refuse(name, array.shape, f"A asks for {shape}", f"give shape {shape}")
    return array


def _pairs(arrays: Mapping[str, NDArray[Any]], name: str) -> NDArray[np.int64]:
    array = _array(arrays, name)
    if not array.size:
        return np.zeros((0, 2), dtype=np.int64)
    if array.ndim != 2 or array.shape[1] != 2 or array.dtype.kind not in "iu":
        value = f"{array.dtype} of shape {array.shape}"
        raise refuse(name, value, "not pairs of peers", "give integers of shape (m, 2)")
    return array.astype(np.int64)


def _graph(n: int, pairs: NDArray[np.int64]) -> Graph:
    edges = tuple(Edge(int(u), int(v)) for u, v in pairs)
    return _mended("edges", lambda: Graph(n, edges))


def _mended(name: str, make: Callable[[], T]) -> T:
    try:
        return make()
    except GraphError as error:
        raise refuse(name, error.value, error.problem, error.remedy) from error


def _two_trees(arrays: Mapping[str, NDArray[Any]], n: int) -> tuple[Tree, ...]:
    names = ("edges_a", "edges_b")
    if not any(name in arrays for name in names):
        return ()
    return tuple(tree_of(n, _pairs(arrays, name), name) for name in names)


def _drops(arrays: Mapping[str, NDArray[Any]], n: int) -> NDArray[np.bool_]:
    drops = arrays["drops"]
    if drops.ndim != 3 or drops.shape[1:] != (n, n) or not np.isin(drops, (0, 1)).all():
        value = f"{drops.dtype} of shape {drops.shape}"
        raise refuse("drops", value, "not a table of losses", f"give bools of shape (T, {n}, {n})")
    return drops.astype(np.bool_)


def _interactions(
    arrays: Mapping[str, NDArray[Any]], n: int, graph: Graph | None
) -> NDArray[np.int64]:
    pairs = _pairs(arrays, "interactions")
    for u, v in pairs.tolist():
        if u == v or not {u, v} <= set(range(n)) or (graph and v not in graph.neighbours(u)):
            raise refuse("interactions", [u, v], "not an edge of the graph", "mend that row")
    return pairs


def _local_steps(arrays: Mapping[str, NDArray[Any]]) -> NDArray[np.int64]:
    steps = arrays["interaction_steps"]
    if steps.ndim != 1 or steps.dtype.kind not in "iu" or (steps < 1).any():
        remedy = "give integers of at least 1, one for each interaction"
        raise refuse("interaction_steps", steps.tolist(), "not numbers of local steps", remedy)
    return steps.astype(np.int64)


def _rates(arrays: Mapping[str, NDArray[Any]]) -> Floats:
    rates = _floats(arrays, "lr", ("T",))
    if (rates < 0).any():
        raise refuse("lr", float(rates.min()), "negative", "give rates of at least 0")
    return rates
