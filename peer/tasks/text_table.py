"""Labelled texts in CSV files: every row a class from 1 on, then the text, in one or more columns.

That is the form of AG News and its kin. No header; fields may be quoted, with "" for a quote.
"""

from __future__ import annotations

import csv
import gzip
import re
import zlib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import torch
import xxhash
from torch import Tensor

from relayswarm.errors import DataError

_WORD = re.compile(r"\w+|[^\w\s]")
START = 1  # the token before each text; 0 fills up
FIRST_WORD = 2
_GZIP_MAGIC = b"\x1f\x8b"
_REMEDY = "give rows of a class, from 1, and a text, such as AG News has"


def read_table(path: Path, classes: int) -> tuple[list[str], Tensor]:
    """Texts (columns joined by blanks) and their classes, from 0; plain or gzip-compressed.

    Raises DataError that names file and row.
    """
    texts, labels = [], []
    try:
        for number, row in enumerate(_rows(path), 1):
            labels.append(_class_of(path, number, row, classes))
            texts.append(" ".join(row[1:]))
    except (OSError, EOFError, UnicodeDecodeError, csv.Error, zlib.error) as error:
        raise DataError("data file", str(path), f"cannot be read ({error})", _REMEDY) from error
    if not texts:
        raise DataError("data file", str(path), "is empty", _REMEDY)
    return texts, torch.tensor(labels)


def hashed(texts: Sequence[str], vocabulary: int, length: int) -> Tensor:
    """Texts as tokens, int32, shape (n, length): `START`, then a number for each word or sign in
    lower case, cut off or filled up with 0.

    A word's number is its hash, so that all peers agree without having seen each other's words;
    words share one where two hashes agree.
    """
    tokens = torch.zeros(len(texts), length, dtype=torch.int32)
    for row, text in zip(tokens, texts, strict=True):
        words = _WORD.findall(text.lower())[: length - 1]
        numbers = [START, *(_number(word, vocabulary) for word in words)]
        row[: len(numbers)] = torch.tensor(numbers, dtype=torch.int32)
    return tokens


@lru_cache(maxsize=1 << 16)
def _number(word: str, vocabulary: int) -> int:
    return FIRST_WORD + xxhash.xxh32_intdigest(word.encode()) % (vocabulary - FIRST_WORD)


def _rows(path: Path) -> Iterator[list[str]]:
    with path.open("rb") as raw:
        is_gzip = raw.read(2) == _GZIP_MAGIC
    opener = gzip.open if is_gzip else open
    with opener(path, "rt", encoding="utf-8", newline="") as file:
        yield from csv.reader(file, strict=True)


def _class_of(path: Path, number: int, row: Sequence[str], classes: int) -> int:
    if len(row) < 2:
        problem = f"row {number} has {len(row)} columns"
        raise DataError("data file", str(path), problem, _REMEDY)
    label = int(row[0]) if row[0].isascii() and row[0].isdigit() else 0
    if not 1 <= label <= classes:
        problem = f"row {number} has the class {row[0][:20]!r}, not 1 to {classes}"
        remedy = "set task.options.classes; the file must have no header"
        raise DataError("data file", str(path), problem, remedy)
    return label - 1
