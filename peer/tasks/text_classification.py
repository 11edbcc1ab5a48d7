"""`text-classification`: texts in CSV files such as AG News; a small transformer, or DistilBERT.

Reads `train.csv` and `test.csv` (plain or .gz; the options name others) from the data folder or its
subfolder `text-classification` or `ag-news`. The small transformer begins from scratch, with words
numbered by their hash. DistilBERT begins from a folder of this machine (`pretrained`), with the
tokens of that folder; it needs the extra `transformers`, and nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator
from torch import Tensor, nn

from peer.tasks.classification import Classification, Labelled
from peer.tasks.data_files import data_folder, find
from peer.tasks.text_table import hashed, read_table
from peer.tasks.transformer import TextClassifier, TransformerOptions
from relayswarm.errors import DataError
from relayswarm.task import Site

_PLACES = ("text-classification", "ag-news")


class TextClassificationOptions(TransformerOptions):
    """`classes`: they are numbered from 1 in the files. `length`: tokens of a text that are used.
    `vocabulary`: numbers that words are hashed to. `pretrained`: folder with DistilBERT's
    `config.json`, `model.safetensors` and tokenizer, for `network = "distilbert"`; its own sizes
    then hold."""

    network: Literal["transformer", "distilbert"] = "transformer"
    classes: int = Field(default=4, ge=2, le=1 << 16)
    train_file: str = "train.csv"
    test_file: str = "test.csv"
    length: int = Field(default=64, ge=2, le=1 << 14)
    vocabulary: int = Field(default=8192, ge=16, le=1 << 24)
    layers: int = Field(default=2, ge=1, le=256)
    pretrained: str | None = None

    @model_validator(mode="after")
    def _has_its_folder(self) -> TextClassificationOptions:
        if (self.network == "distilbert") != (self.pretrained is not None):
            raise ValueError('network = "distilbert" and pretrained = "FOLDER" go together')
        return self


class TextClassification(Classification):
    """Texts by class, such as AG News; a transformer from scratch, or DistilBERT."""

    name = "text-classification"
    Options = TextClassificationOptions
    options: TextClassificationOptions
    evaluation_batch = 128

    def optimizer_defaults(self) -> Mapping[str, Any]:
        """Table 8 of the RelaySGD paper but for the rate, which it tunes."""
        rate = 5e-5 if self.options.pretrained else 1e-3
        return {"name": "adam", "lr": rate, "schedule": "constant"}

    def model(self) -> nn.Module:
        options = self.options
        if options.pretrained is not None:
            from peer.tasks.distilbert import DistilBert

            return DistilBert(Path(options.pretrained), options.classes)
        sizes = (options.length, options.width, options.heads, options.layers)
        return TextClassifier(options.vocabulary, *sizes, options.classes)

    def train_set(self, site: Site) -> Labelled:
        return self._load(site, self.options.train_file)

    def test_set(self, site: Site) -> Labelled:
        return self._load(site, self.options.test_file)

    @property
    def is_random(self) -> bool:
        return self.options.pretrained is not None  # DistilBERT drops out

    def predictions(
        self, model: nn.Module, inputs: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        return model(inputs.long()), labels

    def _load(self, site: Site, name: str) -> Labelled:
        folder = data_folder(site, self.name)
        path = find(folder, _PLACES, (name, f"{name}.gz"))
        if path is None:
            places = ", ".join(_PLACES)
            raise DataError(
                "data_dir",
                str(folder),
                f"neither it nor its subfolders {places} have {name} or {name}.gz",
                "put it there, or name others in task.options.train_file and test_file",
            )
        return _read(path, self.options)


@lru_cache(maxsize=2)
def _read(path: Path, options: TextClassificationOptions) -> Labelled:
    texts, labels = read_table(path, options.classes)
    if options.pretrained is not None:
        from peer.tasks.distilbert import tokens

        return Labelled(tokens(Path(options.pretrained), texts, options.length), labels)
    return Labelled(hashed(texts, options.vocabulary, options.length), labels)
