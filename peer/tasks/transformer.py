"""Small transformers from scratch (Vaswani et al. 2017; pre-norm, as in GPT-2).

`Gpt` says at each place what comes next, `TextClassifier` what class a text is of. Neither drops
out, so that a loss depends on model and batch alone.
"""

from __future__ import annotations

from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from peer.tasks.classification import SampleOptions

PADDING = 0  # the token that fills up a text; no other place pays attention to it
_INIT_STD = 0.02


class TransformerOptions(SampleOptions):
    """`[task.options]` of tasks that train a transformer from scratch: its sizes."""

    width: int = Field(default=128, ge=1, le=1 << 14)
    heads: int = Field(default=4, ge=1, le=1 << 10)

    @model_validator(mode="after")
    def _width_is_shared_evenly(self) -> TransformerOptions:
        if self.width % self.heads:
            raise ValueError(f"width is no multiple of heads, {self.heads}")
        return self


class Block(nn.Module):
    """Self-attention and a two-layer network, each added to what comes in: (b, t, width)."""

    def __init__(self, width: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.attention_norm = nn.LayerNorm(width)
        self.queries_keys_values = nn.Linear(width, 3 * width)
        self.attended = nn.Linear(width, width)
        self.network_norm = nn.LayerNorm(width)
        self.network = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """`mask`, shape (b, 1, 1, t), is true where attention may be paid."""
        x = x + self._attention(self.attention_norm(x), mask)
        y: Tensor = x + self.network(self.network_norm(x))
        return y

    def _attention(self, x: Tensor, mask: Tensor | None) -> Tensor:
        b, t, width = x.shape
        parts = self.queries_keys_values(x).view(b, t, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4)  # each (b, heads, t, width / heads)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=self.causal)
        attended: Tensor = self.attended(mixed.transpose(1, 2).reshape(b, t, width))
        return attended


class Transformer(nn.Module):
    """Tokens, shape (b, t <= length), to their vectors, shape (b, t, width)."""

    def __init__(
        self, vocabulary: int, length: int, width: int, heads: int, layers: int, *, causal: bool
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.places = nn.Embedding(length, width)
        self.blocks = nn.ModuleList(Block(width, heads, causal=causal) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
        x: Tensor = self.tokens(tokens) + self.places.weight[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x, mask)
        y: Tensor = self.norm(x)
        return y


class Gpt(nn.Module):
    """Tokens, shape (b, t), to logits of the one after each, shape (b, t, vocabulary)."""

    def __init__(self, vocabulary: int, length: int, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.body = Transformer(vocabulary, length, width, heads, layers, causal=True)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.apply(_initialise)

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(tokens))
        return logits


class TextClassifier(nn.Module):
    """Tokens, shape (b, t), filled up with `PADDING`, to logits, shape (b, classes): from the mean
    of the vectors of all tokens."""

    def __init__(
        self, vocabulary: int, length: int, width: int, heads: int, layers: int, classes: int
    ) -> None:
        super().__init__()
        self.body = Transformer(vocabulary, length, width, heads, layers, causal=False)
        self.head = nn.Linear(width, classes)
        self.apply(_initialise)

    def forward(self, tokens: Tensor) -> Tensor:
        present = tokens != PADDING
        vectors = self.body(tokens, present[:, None, None, :])
        weights = present.to(vectors.dtype)[:, :, None]
        logits: Tensor = self.head((vectors * weights).sum(dim=1) / weights.sum(dim=1))
        return logits


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=_INIT_STD)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
