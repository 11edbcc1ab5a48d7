"""python -m benchmarks.figures [NAME ...] [--tune] [--output DIR]"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.figures import (
    heterogeneity,
    local_steps,
    mean_estimation,
    scaling,
    social_network,
    theory,
)
from benchmarks.figures.bench import Bench, machine

DOCS = Path(__file__).parent.parent.parent / "docs" / "figures"

FIGURES: dict[str, Callable[[Bench], None]] = {
    "figure-2": scaling.figure_2,
    "figure-3": social_network.figure_3,
    "figure-5": theory.figure_5,
    "figure-6": theory.figure_6,
    "figure-7": heterogeneity.figure_7,
    "figure-8": heterogeneity.figure_8,
    "figure-9": mean_estimation.figure_9,
    "figure-10": heterogeneity.figure_10,
    "local-steps": local_steps.figure_local_steps,
}


def main() -> None:
    """Make the named figures, or all, and say how long each took."""
    parser = argparse.ArgumentParser(prog="benchmarks.figures", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(FIGURES)}")
    parser.add_argument("--tune", action="store_true", help="search every rate anew")
    parser.add_argument("--output", type=Path, default=DOCS, help="where CSV and PNG go")
    arguments = parser.parse_args()
    unknown = set(arguments.names) - set(FIGURES)
    if unknown:
        parser.error(f"{', '.join(sorted(unknown))}: no such figure; use {', '.join(FIGURES)}")
    torch.set_num_threads(1)
    bench = Bench(arguments.output, tuning=arguments.tune)
    seconds = {}
    for name in arguments.names or FIGURES:
        began = time.perf_counter()
        FIGURES[name](bench)
        seconds[name] = round(time.perf_counter() - began, 1)
        print(f"{name}: {seconds[name]} s", flush=True)
    if not arguments.names:
        record = {"machine": machine(), "seconds": seconds, "searched_rates": arguments.tune}
        (bench.output / "run.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
