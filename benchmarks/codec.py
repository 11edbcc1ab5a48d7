"""What a wire format costs in computation: processor seconds for each GB of float32 elements.

    python benchmarks/codec.py

A vector of 25 million float32 elements (100 MB) is encoded, its payload's checksum is taken twice,
as sender and receiver do, and it is decoded: chunk by chunk as it would be sent, in one thread, on
the lattice next to a key that is off by 1 % of its elements' size. Formats take turns, and figures
are medians over the turns. Prints a table, and writes JSON and a plot (`--output`).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from matplotlib.figure import Figure
from torch import Tensor
from xxhash import xxh3_64

from benchmarks.record import Record
from peer.codec import Bytes, Format, decode, encode
from peer.codec.edges import Key, Lattice
from peer.codec.lattice import BLOCK

ELEMENTS = 25_000_000
TURNS = 5
CHUNK_BYTES = 1 << 20
PHASES = ("encode", "checksum", "decode")


class Codec(Protocol):
    """One vector's way through a format, chunk by chunk from its first element on."""

    chunk: int  # elements

    def encode(self, part: Tensor) -> Bytes: ...
    def decode(self, data: Bytes, start: int, out: Tensor) -> bool: ...


class PlainCodec:
    """A format of numbers one after the other."""

    def __init__(self, fmt: Format) -> None:
        self.chunk = CHUNK_BYTES // fmt.itemsize
        self.encode: Callable[[Tensor], Bytes] = partial(encode, fmt=fmt)
        self._format = fmt

    def decode(self, data: Bytes, start: int, out: Tensor) -> bool:  # noqa: ARG002
        return decode(data, self._format, out)


class LatticeCodec:
    """The lattice, next to a key."""

    def __init__(self, bits: int, key: Tensor, distance: float, *, is_rotated: bool) -> None:
        lattice = Lattice(bits, 1, is_rotated, expected=(distance,))
        self.chunk = CHUNK_BYTES // (BLOCK * bits // 8) * BLOCK
        self.encode: Callable[[Tensor], Bytes] = lattice.encoder(0).encode
        (decoder,) = Key((key,), 1.0, is_rotated).decoders(lattice)
        self.decode: Callable[[Bytes, int, Tensor], bool] = decoder.decode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("reports/benchmark-codec"))
    parser.add_argument("--elements", type=int, default=ELEMENTS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    record = Record()
    rows = measure(arguments.elements)
    record.write(arguments.output / "codec.json", {"rows": rows})
    plot(rows, arguments.output / "codec.png")
    print_table(rows)


def measure(elements: int) -> list[dict[str, Any]]:
    """A row for each format: bytes an element, and seconds for each GB by phase."""
    random = torch.Generator().manual_seed(1)
    vector = torch.randn(elements, generator=random)
    key = vector + 0.01 * torch.randn(elements, generator=random)
    out = torch.empty_like(vector)
    makers: dict[str, Callable[[], Codec]] = {
        fmt.value: partial(PlainCodec, fmt)
        for fmt in (Format.FLOAT32, Format.BFLOAT16, Format.FLOAT16)
    }
    for name, bits, is_rotated in (
        ("lattice", 8, False),
        ("lattice, 16 bits", 16, False),
        ("lattice, rotated", 8, True),
    ):
        far = float((vector - key).abs().max())
        makers[name] = partial(LatticeCodec, bits, key, far, is_rotated=is_rotated)
    seconds: defaultdict[tuple[str, str], list[float]] = defaultdict(list)
    sizes = {}
    for _ in range(TURNS):
        for name, make in makers.items():
            spent, sizes[name] = once(make(), vector, out)
            for phase in PHASES:
                seconds[name, phase].append(spent[phase])
    gigabytes = elements * 4 / 1e9
    return [
        {
            "format": name,
            "bytes_per_element": sizes[name] / elements,
            **{p: statistics.median(seconds[name, p]) / gigabytes for p in PHASES},
        }
        for name in makers
    ]


def once(codec: Codec, vector: Tensor, out: Tensor) -> tuple[dict[str, float], int]:
    """One way through: processor seconds by phase, and the payload's bytes."""
    spent = dict.fromkeys(PHASES, 0.0)
    sent, sums = 0, [xxh3_64(), xxh3_64()]
    for start in range(0, vector.numel(), codec.chunk):
        stop = min(start + codec.chunk, vector.numel())
        began = time.process_time()
        data = codec.encode(vector[start:stop])
        encoded = time.process_time()
        for one in sums:
            one.update(data)
        summed = time.process_time()
        assert codec.decode(data, start, out[start:stop])
        spent["encode"] += encoded - began
        spent["checksum"] += summed - encoded
        spent["decode"] += time.process_time() - summed
        sent += len(data)
    return spent, sent


def total(row: dict[str, Any]) -> float:
    """Seconds for each GB, of all phases together."""
    return float(sum(row[phase] for phase in PHASES))


def print_table(rows: list[dict[str, Any]]) -> None:
    """Seconds for each GB of float32."""
    print(f"{'format':18s} bytes/element   encode  checksum  decode   total   of bfloat16's")
    (of,) = (total(row) for row in rows if row["format"] == "bfloat16")
    for row in rows:
        phases = "".join(f"{row[phase]:9.2f}" for phase in PHASES)
        size = f"{row['bytes_per_element']:13.4f}"
        print(f"{row['format']:18s} {size}{phases} {total(row):7.2f} {total(row) / of:9.1f}")


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Bars of phases on top of each other."""
    figure = Figure(figsize=(7, 3.5), layout="constrained")
    axes = figure.add_subplot()
    bottom = [0.0] * len(rows)
    for phase in PHASES:
        values = [row[phase] for row in rows]
        axes.bar([row["format"].replace(", ", ",\n") for row in rows], values, bottom=bottom)
        bottom = [a + b for a, b in zip(bottom, values, strict=True)]
    axes.legend(PHASES)
    axes.set_ylabel("processor seconds for each GB of float32")
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    main()
