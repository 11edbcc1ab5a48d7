"""The IDX reader takes what is right and names what is wrong."""

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest

from peer.tasks.idx import read_idx
from relayswarm.errors import DataError

VALUES = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)


def encode(values: np.ndarray, code: int = 8) -> bytes:
    sizes = struct.pack(f">{values.ndim}I", *values.shape)
    return bytes([0, 0, code, values.ndim]) + sizes + values.tobytes()


def written(folder: Path, content: bytes) -> Path:
    path = folder / "file-idx"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_reads_plain_and_compressed(tmp_path: Path, pack) -> None:
    path = written(tmp_path, pack(encode(VALUES)))
    assert np.array_equal(read_idx(path, 3), VALUES)


GOOD = encode(VALUES)
GZIPPED = gzip.compress(GOOD, mtime=0)
HUGE = bytes([0, 0, 8, 3]) + struct.pack(">3I", 2**32 - 1, 2**32 - 1, 2**32 - 1)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "begins with ''"),
        (b"\x00\x00\x09\x03" + GOOD[4:], "begins with '00000903', not with '00000803'"),
        (b"\x01" + GOOD[1:], "begins with '01000803'"),
        (encode(VALUES.reshape(6, 4)), "begins with '00000802'"),
        (GOOD[:10], "ends within its header"),
        (GOOD[:-1], "holds 23 values, its header says 24"),
        (GOOD + b"x", "holds 25 values, its header says 24"),
        (HUGE, "holds 0 values"),
        (GZIPPED[:-9], "cannot be read"),
        (GZIPPED[:10] + b"\xff" * 20, "cannot be read"),
    ],
    ids=[
        "empty",
        "another type",
        "no leading zero",
        "another number of dimensions",
        "short header",
        "too short",
        "too long",
        "sizes beyond memory",
        "gzip cut off",
        "gzip damaged",
    ],
)
def test_names_the_file_and_what_is_wrong_with_it(
    tmp_path: Path, content: bytes, problem: str
) -> None:
    path = written(tmp_path, content)
    with pytest.raises(DataError) as caught:
        read_idx(path, 3)
    assert problem in str(caught.value)
    assert str(path) in str(caught.value)
    assert caught.value.remedy == "download the file again"


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        read_idx(tmp_path / "nothing", 1)


def test_a_damaged_checksum_is_noticed(tmp_path: Path) -> None:
    packed = bytearray(gzip.compress(GOOD))
    packed[-8] ^= 1
    with pytest.raises(DataError, match="CRC check failed"):
        read_idx(written(tmp_path, bytes(packed)), 3)
