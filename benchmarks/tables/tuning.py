"""The rate of a cell, by the grid of the RelaySGD paper's appendix C.1, on validation samples.

Powers of two around a start: the paper's is the rate that is best for centralized training, times
the factor of appendix D.1 for relaysgd. Here it is the rate of a like cell if one is tuned already
(another length, batch or heterogeneity), which saves trials and changes only which local optimum is
found, if there are several. Rates stay on one grid, powers of two times `GRID`, or with Adam
`ADAM_GUESS`. One seed.
"""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.tables import work
from benchmarks.tables.catalogue import ALPHAS
from benchmarks.tables.cells import TREES, Cell
from benchmarks.tables.store import Store
from peer.sweep.search import DIVERGED, Score, Tried, sandwich

GRID = 0.1
SEED = 0
GUESSES = {  # multiples of GRID, for the first cell of a kind: (without, with momentum)
    "allreduce": (2.0, 1.0),
    "relaysgd": (4.0, 1.0),
    "relaysgd-grad": (4.0, 1.0),
    "dpsgd": (1.0, 0.5),
    "dpsgd-qgm": (1.0, 0.5),
    "d2": (1.0, 0.25),
    "sgp": (1.0, 0.5),
}
ADAM_GUESS = 0.004


def start_of(cell: Cell, store: Store) -> float:
    """Where the search begins."""
    at = cell.tuned_as()
    for topology in (at.topology, TREES):
        for alpha in sorted(ALPHAS, key=lambda a: abs(math.log((at.alpha or 1.0) / a))):
            for peers, batch, epochs in product(
                (at.peers, 16), (at.batch_size, None), (at.epochs, 5)
            ):
                like = replace(at, alpha=alpha, peers=peers, batch_size=batch, epochs=epochs)
                known = store.rate(replace(like, topology=topology))
                if known is not None:
                    return known
    return ADAM_GUESS if at.task == "ag-news" else GRID * GUESSES[at.method][at.momentum]


def tune(cell: Cell, start: float, data_dir: Path) -> dict[str, Any]:
    """The rate and everything tried, as JSON values."""
    trials: list[tuple[float, float | None]] = []

    def measure(rate: float) -> Score:
        found = work.validate(cell.tuned_as(), rate, SEED, data_dir)
        trials.append((rate, None if found is None else round(found, 4)))
        return DIVERGED if found is None else (0.0, -found)

    _, rate, _ = sandwich(Tried(measure), start)
    return {"rate": rate, "trials": sorted(trials)}
