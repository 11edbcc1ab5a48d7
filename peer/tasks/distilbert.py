"""DistilBERT (Sanh et al. 2019) from a folder of this machine, through the extra `transformers`.

Only `safetensors` files are read, which hold numbers alone, and nothing is downloaded. All peers
must have the same folder: they start from its weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from relayswarm.errors import ConfigError

_FIELD = "task.options.pretrained"
_OFFLINE = {"local_files_only": True, "trust_remote_code": False}


class DistilBert(nn.Module):
    """Tokens, shape (b, t), to logits, shape (b, classes). The last two layers are new, if the
    folder's model is of another number of classes, or of none."""

    def __init__(self, folder: Path, classes: int) -> None:
        super().__init__()
        transformers = _transformers()
        kind = transformers.DistilBertForSequenceClassification
        try:
            self.network: nn.Module = kind.from_pretrained(
                _existing(folder),
                num_labels=classes,
                ignore_mismatched_sizes=True,
                use_safetensors=True,
                **_OFFLINE,
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise _unusable(folder, error) from error
        self.padding = int(self.network.config.pad_token_id or 0)
        self.network.float()  # whatever the file holds
        self.train()

    def forward(self, tokens: Tensor) -> Tensor:
        present = (tokens != self.padding).long()
        logits: Tensor = self.network(input_ids=tokens, attention_mask=present).logits
        return logits


def tokens(folder: Path, texts: Sequence[str], length: int) -> Tensor:
    """Texts in the folder's own tokens, int32, shape (n, length)."""
    transformers = _transformers()
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(_existing(folder), **_OFFLINE)
        found = tokenizer(list(texts), truncation=True, max_length=length, padding="max_length")
    except (OSError, ValueError, KeyError) as error:
        raise _unusable(folder, error) from error
    return torch.tensor(found["input_ids"], dtype=torch.int32)


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        remedy = "pip install 'relayswarm[transformers]'"
        problem = f"the package transformers cannot be imported ({error})"
        raise ConfigError("task.options.network", "distilbert", problem, remedy) from error
    return transformers


def _existing(folder: Path) -> str:
    if not (folder / "config.json").is_file():
        raise OSError("there is no config.json in it")
    return str(folder)


def _unusable(folder: Path, error: Exception) -> ConfigError:
    text = str(error).partition("\n")[0][:200]
    remedy = "give a folder with DistilBERT's config.json, model.safetensors and tokenizer files"
    return ConfigError(_FIELD, str(folder), f"cannot be used ({text})", remedy)
