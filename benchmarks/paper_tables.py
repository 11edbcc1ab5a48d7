"""The tables of the RelaySGD and SwarmSGD papers on Fashion-MNIST, in the simulator.

    python benchmarks/paper_tables.py --data-dir FOLDER             all but the longer tables
    python benchmarks/paper_tables.py relaysgd-5 --data-dir FOLDER  one of them
    python benchmarks/paper_tables.py --page                        only docs/results.md, anew

Runs whose rows are in docs/results/rows.csv are not done again. `--output` names another folder,
which begins with the committed rates and no rows; its runs are compared with those rows in the end.
A rate that is not in docs/results/rates.json is searched first. Cut off at any moment, it goes on
where it was; started twice, it shares the work.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.tables import page, tuning, work
from benchmarks.tables.catalogue import DRAWN, TABLES, Table
from benchmarks.tables.cells import Cell
from benchmarks.tables.store import RATES, Store
from benchmarks.tables.work import Row, by_key, ended_alike

DOCS = Path(__file__).parent.parent / "docs"
RESULTS = DOCS / "results"
PAGE = DOCS / "results.md"
SEEDS = 3
PATIENCE_S = 2.0  # between looks at what others are doing


def main() -> None:
    """See the top of this file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    usual = [name for name, table in TABLES.items() if not table.longer]
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=f"of {', '.join(TABLES)}")
    parser.add_argument("--data-dir", type=Path, help="where the Fashion-MNIST files are")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="of one thread each")
    parser.add_argument("--minutes", type=float, help="begin nothing after so long")
    parser.add_argument("--page", action="store_true", help="run nothing")
    arguments = parser.parse_args()
    for name in set(arguments.tables) - set(TABLES):
        parser.error(f"{name}: no such table; use {', '.join(TABLES)}")
    chosen = [TABLES[name] for name in arguments.tables or usual]
    if not arguments.page:
        if arguments.data_dir is None:
            parser.error("--data-dir: name the folder that holds fashion-mnist")
        begin_with_committed_rates(arguments.output)
        seeds, jobs, minutes = arguments.seeds, arguments.jobs, arguments.minutes
        run(chosen, arguments.output, arguments.data_dir, seeds, jobs, minutes)
    store = Store(arguments.output)
    if arguments.output == RESULTS:
        page.write(PAGE, store)
    else:
        rows = by_key(store.rows())
        print(*(f"{table.title}\n{page.as_markdown(table, rows)}" for table in chosen), sep="\n")
        print(beside(store.rows(), Store(RESULTS).rows()))


def begin_with_committed_rates(folder: Path) -> None:
    """In a folder that has no rates."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / RATES).exists() and (RESULTS / RATES).exists():
        shutil.copy(RESULTS / RATES, folder / RATES)


def beside(rows: Sequence[Row], committed: Sequence[Row]) -> str:
    """Which runs ended otherwise than those of the page did, by any digit that is kept."""
    known = {(row.cell, row.seed): row for row in committed}
    both = [(row, known[row.cell, row.seed]) for row in rows if (row.cell, row.seed) in known]
    others = [(row, other) for row, other in both if not ended_alike(row, other)]
    lines = [
        f"  {row.cell}, seed {row.seed}: worst {row.worst:.2%}, there {other.worst:.2%}"
        for row, other in others
    ]
    alike = (
        f"{len(both) - len(others)} of {len(both)} runs ended with the same digits as the page's"
    )
    return "\n".join([alike, *lines])


@dataclass(frozen=True, slots=True)
class Item:
    """A run to do; without a seed, a rate to find."""

    cell: Cell
    seed: int | None = None

    @property
    def name(self) -> str:
        return f"{self.cell.key}, " + ("rate" if self.seed is None else f"seed {self.seed}")


def items(tables: Sequence[Table], seeds: int) -> list[Item]:
    """Everything, in the order of its worth: a seed of all cells comes before the next seed, a rate
    just before its first run."""
    found: dict[Item, None] = {}
    for table in tables:
        for momentum in (True, False):
            cells = [cell for cell in table.cells if cell.momentum == momentum]
            for seed in range(seeds):
                for cell in cells:
                    found |= dict.fromkeys((Item(cell.tuned_as()), Item(cell, seed)))
    return list(found)


def run(
    tables: Sequence[Table],
    folder: Path,
    data_dir: Path,
    seeds: int = SEEDS,
    jobs: int = 1,
    minutes: float | None = None,
) -> None:
    """Do what is not done, in `jobs` processes."""
    ends = time.time() + 60 * minutes if minutes else None
    todo = items(tables, seeds)
    spawn = get_context("spawn")
    others = [
        spawn.Process(target=do, args=(todo, folder, data_dir, ends)) for _ in range(jobs - 1)
    ]
    for other in others:
        other.start()
    do(todo, folder, data_dir, ends)
    for other in others:
        other.join()
    if any(other.exitcode for other in others):
        sys.exit("a process ended with an error, see above")


def do(todo: Sequence[Item], folder: Path, data_dir: Path, ends: float | None) -> None:
    """One item after the other, of those that nobody else has begun, until all are done."""
    store, began = Store(folder), time.time()
    while ends is None or time.time() < ends:
        left = [item for item in todo if not is_done(item, store)]
        if not left:
            return
        for item in left:
            if item.seed is not None and store.rate(item.cell) is None:
                continue
            with store.claim(item.name) as is_mine:
                if is_mine and not is_done(item, store):
                    told = carry_out(item, store, data_dir)
                    done = len(todo) - len(left) + 1
                    minutes = (time.time() - began) / 60
                    print(
                        f"{minutes:5.1f} min {done:4} of {len(todo)}  {item.name}: {told}",
                        flush=True,
                    )
                    break
        else:
            time.sleep(PATIENCE_S)  # others are at what is left, or find the rates for it


def is_done(item: Item, store: Store) -> bool:
    """Whether its row or rate is kept."""
    if item.seed is None:
        return store.rate(item.cell) is not None
    return store.has(item.cell, item.seed)


def carry_out(item: Item, store: Store, data_dir: Path) -> str:
    """Do it and keep what it came to; returns that for people."""
    if item.seed is None:
        tuned = tuning.tune(item.cell, tuning.start_of(item.cell, store), data_dir)
        store.add_rate(item.cell, tuned)
        return f"{tuned['rate']:g} of {tuned['trials']}"
    rate = store.rate(item.cell)
    assert rate is not None
    row, points = work.run(item.cell, rate, item.seed, data_dir, curve=item.cell in DRAWN)
    store.add(row, points)
    if not row.converged and not item.cell.drop:  # with losses that is a result
        store.halve(item.cell, rate, item.seed)
        return f"diverged at {rate:g}"
    return f"worst {row.worst:.1%}, mean model {row.consensus:.1%}"


if __name__ == "__main__":
    main()
