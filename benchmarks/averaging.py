"""What the averaging of a step takes: one pass over the model between two computations.

    python benchmarks/averaging.py

A model of 25 million float32 elements (100 MB) becomes the mean of itself and a message, "previous"
is kept of it, and a stream that has not been read yet keeps the value before. Chunk by chunk, all
that is done to one before the next begins, with chunks of several sizes; beside that the same
arithmetic by torch on whole vectors, one after the other. In one thread; ways take turns, and
figures are medians over the turns. Prints a table, and writes JSON and a plot (`--output`).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from matplotlib.figure import Figure

from benchmarks.record import Record
from peer.algorithms.core import LIVE, Epoch, Head, Kind, Lin, Message, Reg, Role, Set
from peer.process import keep_freed_memory
from peer.registers import CHUNK_ELEMENTS, Registers

ELEMENTS = 25_000_000
TURNS = 15
SIZES = tuple(1 << power for power in range(14, 23, 2))
WHOLE = "whole vectors, by torch"

X, PREVIOUS = Reg(LIVE), Reg("previous")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("reports/benchmark-averaging"))
    parser.add_argument("--elements", type=int, default=ELEMENTS)
    arguments = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)
    record = Record()
    seconds = measure(arguments.elements)
    record.write(
        arguments.output / "averaging.json",
        {"seconds": seconds},
        elements=arguments.elements,
        turns=TURNS,
    )
    plot(seconds, arguments.output / "averaging.png")
    print(f"{'':26}     ms   of whole vectors")
    for way, spent in seconds.items():
        print(f"{way:26} {1000 * spent:6.1f} {spent / seconds[WHOLE]:8.2f}")


def measure(elements: int) -> dict[str, float]:
    """Processor seconds of each way."""
    registers = Registers(torch.randn(elements), {PREVIOUS.name: Role.MODEL}, elements)
    message = Message(Head("peer", 1, Epoch(), 0, Kind.RELAY, count=1), 0, torch.randn(elements))
    kept = torch.zeros(elements)
    ways: dict[str, Callable[[], float]] = {WHOLE: partial(by_torch, registers, message, kept)}
    for size in SIZES:
        in_use = ", in use" * (size == CHUNK_ELEMENTS)
        name = f"chunks of {4 * size >> 10} KiB{in_use}"
        ways[name] = partial(by_chunks, registers, message, size)
    seconds = defaultdict(list)
    for _ in range(TURNS):
        for name, way in ways.items():
            seconds[name].append(way())
    return {name: statistics.median(spent) for name, spent in seconds.items()}


def by_torch(registers: Registers, message: Message, kept: torch.Tensor) -> float:
    x, previous = registers[LIVE], registers[PREVIOUS.name]
    began = time.process_time()
    kept.copy_(x)
    torch.add(x, message.payload, out=x)
    torch.div(x, 2.0, out=x)
    previous.copy_(x)
    return time.process_time() - began


def by_chunks(registers: Registers, message: Message, size: int) -> float:
    registers.chunk = size
    stream = registers.outgoing((Lin(((1, X),)),), message.head)
    mean, keep = Set(X, Lin(((1, X), (1, message)), 2)), Set(PREVIOUS, Lin(((1, X),)))
    began = time.process_time()
    registers.set_together((mean, keep))
    spent = time.process_time() - began
    stream.close()
    return spent


def plot(seconds: dict[str, float], path: Path) -> None:
    figure = Figure(figsize=(8, 3), layout="constrained")
    axes = figure.subplots()
    axes.barh(list(seconds), [1000 * spent for spent in seconds.values()])
    axes.invert_yaxis()
    axes.set_xlabel("ms of a processor")
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    main()
