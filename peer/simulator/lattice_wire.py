"""Messages on the lattice, in the simulated network: what transport does between two daemons.

A message is encoded and decoded when it arrives. By then those sent before over its edge have been
answered, as for a daemon, which encodes a message when its turn has come.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from peer.algorithms.core import Head, PeerId
from peer.codec import Format, default_format
from peer.codec.edges import Forecast, Key, Keys, Lattice, LatticeSetting, payload_bytes
from peer.codec.lattice import BITS, FULL_PRECISION
from peer.simulator.traffic import Sized

Vectors = tuple[Tensor, ...]


class Sender(Protocol):
    """A peer's registers, as far as what it sends goes."""

    @property
    def sent(self) -> Lattice | None:
        """How its last message was best written."""


class Tries(Protocol):
    """Hears of each try of a message: the bits of an element (or FULL_PRECISION) and the bytes of
    its payload; and of each that the receiver could not decode, so that another follows."""

    def wrote(self, sender: PeerId, bits: int, count: int) -> None: ...
    def retried(self, sender: PeerId) -> None: ...


class LatticeWire:
    """All edges of a simulated swarm."""

    def __init__(self, setting: LatticeSetting, seed: int, tries: Tries) -> None:
        self._setting, self._seed, self._tries = setting, seed, tries
        self._forecasts: dict[tuple[PeerId, PeerId], Forecast] = {}
        self._keys: dict[PeerId, Keys] = {}

    def __call__(self, sender: PeerId, to: PeerId, head: Head, payload: Vectors) -> Vectors:
        """What the receiver gets."""
        edge = (sender, to)
        if edge not in self._forecasts:
            self._forecasts[edge] = Forecast(self._setting, self._seed, to)
        forecast, keys = self._forecasts[edge], self._keys.setdefault(to, Keys(self._setting))
        key = keys.find(head, len(payload))
        vectors, distances = self._decoded(head, payload, forecast, key)
        forecast.answered(head, distances)
        keys.remember(head, vectors)
        return vectors

    def _decoded(
        self, head: Head, payload: Vectors, forecast: Forecast, key: Key | None
    ) -> tuple[Vectors, tuple[float, ...]]:
        """The payload after the first try that succeeds, and its distances from the key."""
        lattice = forecast.coding(head, len(payload))
        while lattice is not None:
            self._write(head, payload, lattice)
            wanted = FULL_PRECISION
            if key is not None:
                vectors, distances, wanted = _through(lattice, payload, key)
                if vectors is not None:
                    return vectors, distances
            self._tries.retried(head.sender)
            lattice = forecast.coding(head, len(payload), wanted)
        self._write(head, payload, None)
        return payload, key.distances(payload) if key else ()

    def _write(self, head: Head, payload: Vectors, lattice: Lattice | None) -> None:
        bits = lattice.bits if lattice else FULL_PRECISION
        sizes = [
            payload_bytes(lattice or default_format(vector.dtype), 1, vector.numel())
            for vector in payload
        ]
        self._tries.wrote(head.sender, bits, sum(sizes))


class PlainWire:
    """Copies that pairs exchange, in `fmt`.

    A partner that is busy says so at the header, so nothing is counted then.
    """

    def __init__(self, fmt: Format, tries: Tries) -> None:
        self._format, self._tries = fmt, tries

    def __call__(
        self,
        sender: PeerId,
        to: PeerId,  # noqa: ARG002
        head: Head,  # noqa: ARG002
        payload: Sequence[Sized],
    ) -> Any:
        sizes = [payload_bytes(self._format, 1, vector.numel()) for vector in payload]
        self._tries.wrote(sender, FULL_PRECISION, sum(sizes))
        return payload


class PairWire:
    """Copies that pairs exchange, rounded to the lattice; those that are not take the plain wire.

    `vectors(peer)` are a peer's registers, `shared(peer)` is its copy, the key to decode with.
    """

    def __init__(
        self,
        vectors: Callable[[PeerId], Sender],
        shared: Callable[[PeerId], Tensor],
        fmt: Format,
        tries: Tries,
    ) -> None:
        self._vectors, self._shared, self._tries = vectors, shared, tries
        self._plain = PlainWire(fmt, tries)

    def __call__(self, sender: PeerId, to: PeerId, head: Head, payload: Vectors) -> Vectors:
        """What the receiver gets: the payload, in the first try that it can decode."""
        lattice = self._vectors(sender).sent if payload else None
        while lattice is not None:
            size = payload_bytes(lattice, 1, payload[0].numel())
            self._tries.wrote(sender, lattice.bits, size)
            key = Key((self._shared(to),), 1.0, lattice.is_rotated)
            vectors, _, wanted = _through(lattice, payload, key)
            if vectors is not None:
                return vectors
            self._tries.retried(sender)
            lattice = replace(lattice, bits=wanted) if wanted in BITS else None
        whole: Vectors = self._plain(sender, to, head, payload)
        return whole


def _through(
    lattice: Lattice, payload: Vectors, key: Key
) -> tuple[Vectors | None, tuple[float, ...], int]:
    """Encode and decode: the result or None, the distances, and the bits wanted after a failure."""
    decoders = key.decoders(lattice)
    vectors = tuple(torch.empty_like(vector) for vector in payload)
    for section, (vector, out) in enumerate(zip(payload, vectors, strict=True)):
        decoder = decoders[section]
        if not decoder.decode(lattice.encoder(section).encode(vector), 0, out):
            return None, (), decoder.wanted_bits
    return vectors, tuple(decoder.distance for decoder in decoders), FULL_PRECISION
