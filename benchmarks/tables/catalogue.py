"""Which cells make which table, and what the papers print in their place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from benchmarks.tables.cells import SEQUENTIAL, TREES, Cell, Method

ALPHAS = (1.0, 0.1, 0.01)
BATCH = 8
"""Of RelaySGD's tables on images: half of SwarmSGD's, so that a short run has more steps."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a table: its cell in each column, and the paper's number where it has one."""

    label: str
    topology: str
    cells: Mapping[str, Cell]
    paper: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Table:
    """`printed` is the column of a row (see `work.Row`) that the paper prints. A `figure` is drawn
    of its runs, which are measured on the way for it."""

    name: str
    title: str
    paper: str  # what the paper ran; "" if it has no such table
    printed: str
    lines: Sequence[Line]
    longer: bool = False
    figure: bool = False

    @property
    def columns(self) -> list[str]:
        return list(dict.fromkeys(name for line in self.lines for name in line.cells))

    @property
    def cells(self) -> list[Cell]:
        """Each once, in the order of lines."""
        return list(dict.fromkeys(cell for line in self.lines for cell in line.cells.values()))


# RelaySGD, tables 1 and 11: label, method, topology, momentum, the paper's three numbers
METHODS: Sequence[tuple[str, Method, str, bool, tuple[str, ...]]] = (
    ("allreduce", "allreduce", TREES, False, ("87.0", "87.0", "87.0")),
    ("allreduce, momentum", "allreduce", TREES, True, ("90.2", "90.2", "90.2")),
    ("relaysgd", "relaysgd", TREES, False, ("87.4", "86.9", "84.6")),
    ("relaysgd, momentum", "relaysgd", TREES, True, ("90.2", "89.5", "89.1")),
    ("relaysgd", "relaysgd", "chain", False, ("87.3", "87.2", "86.5")),
    ("relaysgd, momentum", "relaysgd", "chain", True, ("89.5", "89.2", "88.4")),
    ("dpsgd", "dpsgd", "ring", False, ("87.4", "79.9", "53.9")),
    ("dpsgd-qgm", "dpsgd-qgm", "ring", True, ("89.5", "84.8", "63.3")),
    ("d2", "d2", "ring", False, ("87.2", "84.0", "38.2")),
    ("d2, momentum", "d2", "ring", True, ("88.2", "88.5", "61.0")),
    ("sgp", "sgp", "exponential", False, ("87.4", "86.7", "86.7")),
    ("sgp, momentum", "sgp", "exponential", True, ("89.5", "89.2", "87.5")),
)
WITH_MOMENTUM = [method for method in METHODS if method[3]]


def _cell(method: Method, topology: str, momentum: bool, alpha: float, epochs: float) -> Cell:
    """All-reduce does not depend on who holds which samples: it is run once, as in the paper."""
    cut = 1.0 if method == "allreduce" else alpha
    return Cell(method, topology, momentum, cut, epochs, batch_size=BATCH)


def _table_1() -> Table:
    lines = []
    for label, method, topology, momentum, paper in METHODS:
        cells = {f"α = {a:g}": _cell(method, topology, momentum, a, 5) for a in ALPHAS}
        lines.append(Line(label, topology, cells, dict(zip(cells, paper, strict=True))))
    return Table(
        "relaysgd-1",
        "RelaySGD, table 1: heterogeneous data, 5 epochs",
        "CIFAR-10, VGG-11, 200 epochs, batch 32; chain: tables 11 and 14",
        "last_five_worst",
        lines,
    )


def _table_1_long() -> Table:
    lines = []
    for label, method, topology, momentum, paper in METHODS:
        cells = {"α = 0.01": _cell(method, topology, momentum, 0.01, 10)}
        lines.append(Line(label, topology, cells, {"α = 0.01": paper[2]}))
    return Table(
        "relaysgd-1-long",
        "RelaySGD, table 1: the most heterogeneous column, 10 epochs",
        "CIFAR-10, VGG-11, 200 epochs, batch 32; chain: table 11",
        "last_five_worst",
        lines,
    )


def _batches() -> Table:
    lines = []
    for label, method, topology, momentum, _ in WITH_MOMENTUM:
        if method in ("allreduce", "relaysgd") and topology == TREES:
            cell = _cell(method, topology, momentum, 0.01, 10)
            cells = {"batch 16": replace(cell, batch_size=None), f"batch {BATCH}": cell}
            lines.append(Line(label, topology, cells))
    return Table(
        "relaysgd-batches",
        "RelaySGD beside all-reduce: the size of a batch, 10 epochs, α = 0.01",
        "",
        "worst",
        lines,
        longer=True,
    )


TABLE_5: Mapping[str, tuple[str, ...]] = {
    "relaysgd": ("89.2", "89.3", "89.3"),
    "dpsgd-qgm": ("78.3", "76.2", "76.9"),
    "d2": ("87.4", "diverges", "diverges"),
    "sgp": ("88.5", "88.6", "88.1"),
}


def _table_5() -> Table:
    lines = []
    for label, method, topology, momentum, _ in WITH_MOMENTUM:
        if method not in TABLE_5 or topology == "chain":
            continue
        base = _cell(method, topology, momentum, 0.01, 10)
        cells = {
            f"{drop:.0%} lost" if drop else "reliable": replace(base, drop=drop)
            for drop in (0.0, 0.01, 0.1)
        }
        lines.append(Line(label, topology, cells, dict(zip(cells, TABLE_5[method], strict=True))))
    return Table(
        "relaysgd-5",
        "RelaySGD, table 5: lost messages, 10 epochs, α = 0.01",
        "CIFAR-10, VGG-11, 200 epochs",
        "last_five_worst",
        lines,
    )


SWARM_STEPS = ("90.84; 69.71", "91.39; 69.79", "91.55; 69.17", "91.79; 68.99")


def _swarm(
    local_steps: int = 2, multiplier: float = 2, peers: int = 16, *, lattice: bool = False
) -> Cell:
    """As many optimizer steps per model as `multiplier` / `peers` of the sequential run's."""
    epochs = SEQUENTIAL.epochs * multiplier
    return Cell(
        "swarmsgd",
        "complete",
        epochs=epochs,
        local_steps=local_steps,
        lattice=lattice,
        peers=peers,
    )


def _sequential(columns: Iterable[str], paper: str = "") -> Line:
    return Line(
        "sequential SGD",
        "one place",
        dict.fromkeys(columns, SEQUENTIAL),
        dict.fromkeys(columns, paper),
    )


def _swarm_2() -> Table:
    cells = {f"H = {h}": _swarm(h) for h in (1, 2, 3, 4)}
    return Table(
        "swarmsgd-2",
        "SwarmSGD, table 2: local steps between exchanges, multiplier 2",
        "CIFAR-10, ResNet-20; ImageNet, ResNet-18; 32 nodes",
        "mean",
        [Line("swarmsgd", "complete", cells, dict(zip(cells, SWARM_STEPS, strict=True)))],
    )


def _swarm_1() -> Table:
    cells = {f"multiplier {m}": _swarm(2, m) for m in (1, 2, 4, 8)}
    return Table(
        "swarmsgd-1",
        "SwarmSGD, table 1: the baseline recovered by an epoch multiplier",
        "CIFAR-10, ResNet-20: 91.5 sequential, 91.79 with 12 nodes, 4 local steps and 35 of 300 "
        "epochs a model, which is a multiplier of 1.4",
        "mean",
        [
            _sequential(cells, "91.5"),
            Line("swarmsgd, H = 2", "complete", cells),
        ],
    )


SWARM_SIZES = (4, 8, 16, 32, 64)


def _swarm_scaling() -> Table:
    cells = {f"{n} peers": _swarm(2, n / 8, n) for n in SWARM_SIZES}
    return Table(
        "swarmsgd-scaling",
        "SwarmSGD, figure 4 (a): more peers, each with an eighth of the sequential run's steps",
        "CIFAR-10, ResNet-20: 91.35 at all of 8 to 256 nodes",
        "mean",
        [
            _sequential(cells),
            Line("swarmsgd, H = 2", "complete", cells, dict.fromkeys(cells, "91.35")),
        ],
        figure=True,
    )


def _swarm_quantized() -> Table:
    exact, rounded = _swarm(2, 1), _swarm(2, 1, lattice=True)
    return Table(
        "swarmsgd-quantized",
        "SwarmSGD, figure 7: quantized averaging, multiplier 1",
        "CIFAR-10, WideResNet-28: less than 0.3 points lost",
        "mean",
        [
            Line("swarmsgd, H = 2, exact", "complete", {"accuracy": exact}),
            Line("swarmsgd, H = 2, lattice", "complete", {"accuracy": rounded}),
        ],
        figure=True,
    )


# label, method, topology, the paper's numbers with 16, 32 and 64 peers
SCALING: Sequence[tuple[str, Method, str, tuple[str, ...]]] = (
    ("allreduce, momentum", "allreduce", TREES, ("89.5", "88.9", "87.2")),
    ("relaysgd, momentum", "relaysgd", TREES, ("89.3", "86.1", "63.7")),
    ("relaysgd, momentum", "relaysgd", "chain", ("88.4", "86.6", "83.1")),
    ("sgp, momentum", "sgp", "exponential", ("87.0", "68.9", "62.4")),
)


def _table_12() -> Table:
    """At the paper's α = 0.01 nearly all of a class goes to one peer, and so there is no cut of ten
    classes in which each of 32 peers has samples."""
    lines = []
    for label, method, topology, paper in SCALING:
        base = _cell(method, topology, True, 0.1, 10)
        cells = {f"{n} peers": replace(base, peers=n) for n in (16, 32, 64)}
        lines.append(Line(label, topology, cells, dict(zip(cells, paper, strict=True))))
    return Table(
        "relaysgd-12",
        "RelaySGD, table 12: 16, 32 and 64 peers, 10 epochs, α = 0.1",
        "CIFAR-10, VGG-11, 200 epochs, α = 0.01",
        "last_five_worst",
        lines,
        longer=True,
    )


TABLE_14: Mapping[bool, tuple[str, ...]] = {
    False: ("88.8", "88.5", "83.5"),
    True: ("86.9", "87.8", "68.6"),
}


def _table_14() -> Table:
    lines = []
    for momentum, paper in TABLE_14.items():
        cells = {f"α = {a:g}": _cell("relaysgd-grad", "chain", momentum, a, 5) for a in ALPHAS}
        label = "relaysgd-grad" + (", momentum" if momentum else "")
        lines.append(Line(label, "chain", cells, dict(zip(cells, paper, strict=True))))
    return Table(
        "relaysgd-14",
        "RelaySGD, table 14: relayed updates, 5 epochs (relaysgd and all-reduce: table 1)",
        "CIFAR-10, VGG-11, 200 epochs",
        "last_five_worst",
        lines,
        longer=True,
    )


# label, method, topology, the paper's number
ADAM: Sequence[tuple[str, Method, str, str]] = (
    ("allreduce, Adam", "allreduce", TREES, "94.2"),
    ("relaysgd, Adam", "relaysgd", TREES, "93.2"),
    ("relaysgd, Adam", "relaysgd", "chain", ""),
    ("dpsgd, Adam", "dpsgd", "ring", "87.3"),
    ("dpsgd-qgm, Adam", "dpsgd-qgm", "ring", "88.3"),
    ("sgp, Adam", "sgp", "exponential", "88.3"),
)


def _table_4() -> Table:
    lines = []
    for label, method, topology, paper in ADAM:
        cell = replace(_cell(method, topology, True, 0.1, 5), batch_size=None, task="ag-news")
        lines.append(Line(label, topology, {"α = 0.1": cell}, {"α = 0.1": paper}))
    return Table(
        "relaysgd-4",
        "RelaySGD, table 4: Adam on text, 5 epochs, α = 0.1",
        "AG News, DistilBERT fine-tuned, 5 epochs, batch 32",
        "last_five_mean",
        lines,
        longer=True,
    )


TABLES: Mapping[str, Table] = {
    table.name: table
    for table in (
        _table_1_long(),
        _table_5(),
        _swarm_2(),
        _swarm_quantized(),
        _swarm_1(),
        _swarm_scaling(),
        _table_1(),
        _batches(),
        _table_12(),
        _table_14(),
        _table_4(),
    )
}
"""In the order in which they are run."""

DRAWN = frozenset(cell for table in TABLES.values() if table.figure for cell in table.cells)
"""Cells of whose runs there are figures."""
