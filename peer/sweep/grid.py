"""Which runs a sweep consists of: every combination of the axes' values, with every seed.

    --sweep algorithm=relaysgd,d2 --sweep graph=ring,binary-tree --seeds 3      twelve cells

A **cell** is one run; the cells of a **combination** differ in their seed alone.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import relayswarm
from relayswarm.config import RunConfig
from relayswarm.errors import ConfigError
from relayswarm.settings import FLAGS, Override, load_over


@dataclass(frozen=True, slots=True)
class Axis:
    """A setting and the values it takes; `name` is a flag's or the same as `key`."""

    name: str
    key: str  # section.key
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Cell:
    """One run of a sweep."""

    axes: Mapping[str, str]
    config: RunConfig

    @property
    def combination(self) -> str:
        """What tells it from cells of other combinations, for people."""
        return ", ".join(f"{name}={value}" for name, value in self.axes.items()) or "the run"

    @property
    def key(self) -> str:
        """Differs between any two different runs, and between releases; a file's name."""
        content = [relayswarm.__version__, dict(self.axes), self.config.model_dump(mode="json")]
        return blake2b(json.dumps(content).encode(), digest_size=10).hexdigest()


def parse_axis(text: str) -> Axis:
    """`KEY=VALUE,VALUE,...` as an axis. Raises ConfigError."""
    name, equals, values = text.partition("=")
    name = name.strip()
    given = tuple(value.strip() for value in values.split(",") if value.strip())
    if not equals or not given or not (name in FLAGS or "." in name):
        raise ConfigError(
            "--sweep",
            text,
            "not of the form KEY=VALUE,VALUE",
            f"KEY is section.key or one of {', '.join(FLAGS)}; e.g. algorithm=relaysgd,d2",
        )
    if name == "seed":
        raise ConfigError("--sweep", text, "seeds are no axis", "say --seeds 3")
    if len(set(given)) < len(given):
        raise ConfigError("--sweep", text, "names a value twice", "leave one out")
    return Axis(name, FLAGS.get(name, name), given)


def build_cells(
    path: Path | None, overrides: Sequence[Override], axes: Sequence[Axis], seeds: int
) -> list[Cell]:
    """All cells, those of one combination side by side; seeds count up from the config's.

    Raises ConfigError for an axis given twice and for values that the config does not take.
    """
    keys = [axis.key for axis in axes]
    for axis in axes:
        if keys.count(axis.key) > 1:
            raise ConfigError("--sweep", axis.name, "given twice", "put all values behind one =")
    cells = []
    for values in itertools.product(*(axis.values for axis in axes)):
        given = [Override(f"{k}={v}", "--sweep") for k, v in zip(keys, values, strict=True)]
        config = load_over(path, [*overrides, *given])
        named = dict(zip((axis.name for axis in axes), values, strict=True))
        for seed in range(config.seed, config.seed + seeds):
            cells.append(Cell(named, config.model_copy(update={"seed": seed})))
    return cells
