"""Batches of many peers as one: each peer's own samples in its own order, stacked as [n, ...]."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from peer.training.order import DataOrder
from peer.training.trainer import to_device
from relayswarm.config import RunConfig
from relayswarm.task import Site, TaskData, TensorData


class Unstackable(ValueError):
    """These peers cannot be trained in one call, and why."""


class StackedData:
    """The shards of all peers. Raises Unstackable if their batches differ in size."""

    def __init__(
        self,
        shards: Sequence[TaskData],
        sites: Sequence[Site],
        config: RunConfig,
        device: torch.device,
    ) -> None:
        size = config.data.batch_size
        self._orders = [
            DataOrder(config.seed, site.shard, len(shard), size)
            for site, shard in zip(sites, shards, strict=True)
        ]
        if len({order.batch_size for order in self._orders}) > 1:
            raise Unstackable("some shards are smaller than a batch")
        self._shards = shards
        self._device = device
        self._pool = _Pool(shards, device) if _are_tables(shards) else None
        # a single sample is the same batch every time, e.g. that of a full gradient
        self._constant = self._stack(range(len(sites)), 0) if max(map(len, shards)) == 1 else None

    def batch(self, peers: Sequence[int], chosen: Tensor | None, draw: int) -> Any:
        """What `peers` train on at optimizer step `draw`, with a first dimension for the peer.

        `chosen` are the same peers as a tensor; None means all.
        """
        if self._constant is not None:
            return self._constant if chosen is None else _each(lambda t: t[chosen], self._constant)
        if self._pool is None:
            return self._stack(peers, draw)
        return self._pool.rows(peers, [self._orders[peer].indices(draw) for peer in peers])

    def _stack(self, peers: Sequence[int], draw: int) -> Any:
        batches = [self._shards[peer].batch(self._orders[peer].indices(draw)) for peer in peers]
        return to_device(_each(lambda *tensors: torch.stack(tensors), *batches), self._device)


class _Pool:
    """The tables of all shards one below the other, so that one look-up serves all peers."""

    def __init__(self, shards: Sequence[Any], device: torch.device) -> None:
        columns = zip(*(shard.tensors for shard in shards), strict=True)
        self._tensors = tuple(torch.cat(column).to(device) for column in columns)
        sizes = torch.tensor([0, *map(len, shards[:-1])])
        self._starts = sizes.cumsum(0)  # first row of each shard
        self._device = device

    def rows(self, peers: Sequence[int], indices: Sequence[Tensor]) -> tuple[Tensor, ...]:
        starts = self._starts[torch.tensor(peers)]
        wanted = (torch.stack(list(indices)) + starts[:, None]).to(self._device)
        return tuple(tensor[wanted] for tensor in self._tensors)


def _are_tables(shards: Sequence[TaskData]) -> bool:
    """Whether all are plain `TensorData`, whose batches are rows of tensors by contract."""
    return all(type(shard) is TensorData for shard in shards)


def first_of(batches: Any) -> Any:
    """The first peer's batch of stacked ones."""
    return _each(lambda tensor: tensor[0], batches)


def _each(function: Callable[..., Tensor], first: Any, *others: Any) -> Any:
    """Apply `function` to corresponding tensors of equally built batches."""
    if isinstance(first, Tensor):
        return function(first, *others)
    if isinstance(first, dict):
        return {key: _each(function, first[key], *(o[key] for o in others)) for key in first}
    if isinstance(first, tuple | list):
        parts = [_each(function, *column) for column in zip(first, *others, strict=True)]
        return type(first)(*parts) if hasattr(first, "_fields") else type(first)(parts)
    if any(other != first for other in others):
        raise Unstackable(f"a batch holds {first!r} here and something else there")
    return first
