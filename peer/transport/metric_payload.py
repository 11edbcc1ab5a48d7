"""Sums of metrics <-> the vectors of a message: three numbers for each metric."""

from __future__ import annotations

import torch
from torch import Tensor

from peer.algorithms.core import Head
from peer.algorithms.metric_relay import Sum, Sums
from peer.codec.edges import Lattice
from peer.transport.contract import METRIC_ELEMENTS


class MetricPayload:
    """Sums as a message's payload: `peer.transport.contract.Outgoing`."""

    elements = METRIC_ELEMENTS
    lattice: Lattice | None = None
    value: object | None = None

    def __init__(self, sums: Sums) -> None:
        rows = [(float(s.total), float(s.weight), float(s.peers)) for s in sums.values()]
        self.sections = len(rows)
        self._rows = torch.tensor(rows, dtype=torch.float64)

    def read(self, section: int, start: int, stop: int, out: Tensor | None = None) -> Tensor:
        """Elements [start, stop) of a metric's three."""
        part = self._rows[section, start:stop]
        return part if out is None else out.copy_(part)

    def close(self) -> None:
        """Nothing is held."""


def sums_of(head: Head, vectors: tuple[Tensor, ...]) -> Sums:
    """The sums in a received message. A number of peers that is none becomes negative, and is
    refused as such."""
    return {
        name: Sum(*_numbers(vector.tolist()))
        for name, vector in zip(head.metrics, vectors, strict=True)
    }


def _numbers(row: list[float]) -> tuple[float, float, int]:
    total, weight, peers = row
    return total, weight, int(peers) if peers.is_integer() else -1
