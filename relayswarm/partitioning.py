"""Cuts labelled samples into shards: evenly, or heterogeneously by a Dirichlet distribution.

Every sample is in exactly one shard, and the cut depends on its arguments alone: each peer makes
the whole cut for itself and keeps its own part.

The heterogeneous cut deals out one class after the other in random order, in proportions drawn
from Dirichlet(alpha): small alpha gives each class to few shards, alpha -> infinity is even. A
shard that has its even share already gets nothing of the classes that follow, which keeps sizes
alike (the procedure of Lin et al. 2021, which the RelaySGD paper's experiments use). If a shard
falls below the least size the whole draw is repeated, and the report says how often.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from relayswarm.errors import ConfigError, DataError
from relayswarm.task import Site

MAX_DRAWS = 2000
_STREAM = 0x5A4D  # keeps these draws apart from whatever else is seeded with the run's seed

Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Partition:
    """Sample indices of each shard, ascending; `redraws` is how often the draw was repeated."""

    shards: tuple[Indices, ...]
    redraws: int = 0

    @property
    def notes(self) -> tuple[str, ...]:
        """For the report: empty unless draws were repeated."""
        if not self.redraws:
            return ()
        return (f"partition redrawn {self.redraws} times until every shard was large enough",)


def partition(labels: NDArray[np.integer], site: Site) -> Partition:
    """Cut samples with these class labels, shape (samples,), as `site` says.

    Uses the site's shards, seed, alpha (None: even, sizes differ by at most one) and min_samples.
    Where data are local every shard is all that lies at the site.
    Raises ConfigError, naming the setting to change, when no such cut exists or none was found.
    """
    needed = site.min_samples * (1 if site.is_local else site.shards)
    if site.is_local and needed > len(labels):
        raise DataError(
            "data.min_samples",
            site.min_samples,
            f"at this site there are {len(labels)} samples",
            "lower it, or add samples",
        )
    if site.is_local:
        return Partition((np.arange(len(labels)),) * site.shards)
    if needed > len(labels):
        raise ConfigError(
            "data.shards",
            site.shards,
            f"at {site.min_samples} samples each they need {needed} of {len(labels)} samples",
            "use fewer shards or lower data.min_samples",
        )
    generator = np.random.default_rng([_STREAM, site.seed])
    if site.alpha is None:
        pieces = np.array_split(generator.permutation(len(labels)), site.shards)
        return Partition(tuple(np.sort(piece) for piece in pieces))
    return _dirichlet(labels, site, site.alpha, generator)


def _dirichlet(
    labels: NDArray[np.integer], site: Site, alpha: float, generator: np.random.Generator
) -> Partition:
    classes, sizes = np.unique(labels, return_counts=True)
    for redraws in range(MAX_DRAWS):
        order = generator.permutation(len(classes))
        counts = _draw_counts(sizes[order], site.shards, alpha, generator)
        if counts.sum(axis=0).min() >= site.min_samples:
            return Partition(_deal(labels, classes[order], counts, generator), redraws)
    raise ConfigError(
        "data.alpha",
        alpha,
        f"gave no cut into {site.shards} shards of at least {site.min_samples} samples "
        f"in {MAX_DRAWS} draws",
        "raise data.alpha, lower data.min_samples or use fewer data.shards",
    )


def _draw_counts(
    sizes: NDArray[np.integer], shards: int, alpha: float, generator: np.random.Generator
) -> NDArray[np.int64]:
    """How many samples of each class go to each shard: shape (classes, shards)."""
    share = sizes.sum() / shards
    counts = np.zeros((len(sizes), shards), dtype=np.int64)
    for row, size in enumerate(sizes):
        is_open = counts.sum(axis=0) < share
        weights = generator.dirichlet(np.full(shards, alpha)) * is_open
        if not weights.sum() > 0:  # all the mass fell on full shards
            weights = is_open.astype(float)
        cuts = np.rint(np.cumsum(weights) / weights.sum() * size).astype(np.int64)
        counts[row] = np.diff(cuts, prepend=0)
    return counts


def _deal(
    labels: NDArray[np.integer],
    classes: NDArray[np.integer],
    counts: NDArray[np.int64],
    generator: np.random.Generator,
) -> tuple[Indices, ...]:
    shards: list[list[Indices]] = [[] for _ in range(counts.shape[1])]
    for label, row in zip(classes, counts, strict=True):
        samples = generator.permutation(np.flatnonzero(labels == label))
        for shard, piece in zip(shards, np.split(samples, np.cumsum(row)[:-1]), strict=True):
            shard.append(piece)
    return tuple(np.sort(np.concatenate(pieces)) for pieces in shards)
