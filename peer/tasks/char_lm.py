"""`char-lm`: a small GPT that learns which character of a text comes next.

Reads one text file: `input.txt`, or what the option `file` names, in the data folder or its
subfolder `char-lm` or `tiny-shakespeare`. A character is a byte, so that no vocabulary has to be
agreed on; outside of ASCII a character of the text takes several.

The last tenth of the text is the test set. The rest is cut into pieces that do not overlap, which
are the samples. For a Dirichlet cut the "classes" are ten equal parts of the text, in its order.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from peer.tasks.classification import Classification, Labelled
from peer.tasks.data_files import data_folder, find
from peer.tasks.transformer import Gpt, TransformerOptions
from relayswarm.errors import DataError
from relayswarm.task import Site

_BYTES = 256
_TEST_PART = 0.1
_PARTS = 10
_PLACES = ("char-lm", "tiny-shakespeare")


class CharLmOptions(TransformerOptions):
    """`file`: the text's name. `length`: characters that the network sees at once."""

    file: str = "input.txt"
    length: int = Field(default=64, ge=2, le=1 << 14)
    layers: int = Field(default=4, ge=1, le=256)


class CharLm(Classification):
    """The next character of a text; a GPT from scratch."""

    name = "char-lm"
    Options = CharLmOptions
    options: CharLmOptions
    evaluation_batch = 128

    def optimizer_defaults(self) -> Mapping[str, Any]:
        return {"name": "adamw", "lr": 1e-3, "schedule": "cosine", "warmup": 0.05}

    def model(self) -> nn.Module:
        options = self.options
        return Gpt(_BYTES, options.length, options.width, options.heads, options.layers)

    def train_set(self, site: Site) -> Labelled:
        return self._pieces(site)[0]

    def test_set(self, site: Site) -> Labelled:
        return self._pieces(site)[1]

    @property
    def is_random(self) -> bool:
        return False

    def predictions(
        self,
        model: nn.Module,
        inputs: Tensor,
        labels: Tensor,  # noqa: ARG002
    ) -> tuple[Tensor, Tensor]:
        """A prediction for each character but the first of pieces, shape (b, length + 1)."""
        text = inputs.long()
        logits = model(text[:, :-1])
        return logits.flatten(0, 1), text[:, 1:].flatten()

    def _pieces(self, site: Site) -> tuple[Labelled, Labelled]:
        folder = data_folder(site, self.name)
        path = find(folder, _PLACES, (self.options.file,))
        if path is None:
            places = ", ".join(_PLACES)
            raise DataError(
                "data_dir",
                str(folder),
                f"neither it nor its subfolders {places} have {self.options.file}",
                "put a text file there, or name it in task.options.file",
            )
        return _load(path, self.options.length)


@lru_cache(maxsize=2)
def _load(path: Path, length: int) -> tuple[Labelled, Labelled]:
    """(training set, test set); a piece is `length` characters and the one after, bytes."""
    try:
        text = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)
    except (OSError, ValueError) as error:  # frombuffer: of an empty file
        raise _unusable(path, f"cannot be read ({error})") from error
    split = len(text) - int(_TEST_PART * len(text))
    if len(text) - split <= length:
        problem = f"its last tenth has {len(text) - split} characters, not more than {length}"
        raise _unusable(path, problem)
    return _cut(text[:split], length), _cut(text[split:], length)


def _cut(text: Tensor, length: int) -> Labelled:
    pieces = text.unfold(0, length + 1, length).contiguous()
    return Labelled(pieces, torch.arange(len(pieces)) * _PARTS // len(pieces))


def _unusable(path: Path, problem: str) -> DataError:
    return DataError("data file", str(path), problem, "give a longer text, or lower options.length")
