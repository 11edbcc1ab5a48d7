"""A strict reader of IDX files (the format of MNIST and its kin), plain or gzip-compressed.

Format, all numbers big-endian: two zero bytes, a type code (8: unsigned byte), the number of
dimensions, then each dimension's size as uint32, then the values, last dimension fastest.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from io import BufferedIOBase
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from relayswarm.errors import DataError

_UNSIGNED_BYTE = 8
_GZIP_MAGIC = b"\x1f\x8b"
_REMEDY = "download the file again"


def read_idx(path: Path, dimensions: int) -> NDArray[np.uint8]:
    """The unsigned bytes in `path`, an array of so many dimensions.

    Raises DataError that names the file if it cannot be read, is not such a file, is shorter or
    longer than its header says, or its gzip stream is damaged.
    """
    try:
        with path.open("rb") as raw:
            is_gzip = raw.read(2) == _GZIP_MAGIC
        with gzip.open(path, "rb") if is_gzip else path.open("rb") as file:
            shape = _read_header(path, file, dimensions)
            return _read_values(path, file, shape)
    except (OSError, EOFError, zlib.error) as error:
        raise _unusable(path, f"cannot be read ({error})") from error


def _read_header(path: Path, file: BufferedIOBase, dimensions: int) -> tuple[int, ...]:
    magic = file.read(4)
    expected = bytes([0, 0, _UNSIGNED_BYTE, dimensions])
    if magic != expected:
        raise _unusable(path, f"begins with {magic.hex()!r}, not with {expected.hex()!r}")
    sizes = file.read(4 * dimensions)
    if len(sizes) != 4 * dimensions:
        raise _unusable(path, "ends within its header")
    return struct.unpack(f">{dimensions}I", sizes)


def _read_values(path: Path, file: BufferedIOBase, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    expected = math.prod(shape)
    content = file.read()  # not sized by the header, which may be damaged
    if len(content) != expected:
        raise _unusable(path, f"holds {len(content)} values, its header says {expected} {shape}")
    return np.frombuffer(content, dtype=np.uint8).reshape(shape)


def _unusable(path: Path, problem: str) -> DataError:
    return DataError("data file", str(path), problem, _REMEDY)
