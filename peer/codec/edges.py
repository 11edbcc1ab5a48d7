"""What the two ends of an edge remember, so that its messages can travel on the lattice.

The receiver's key for a message is the last one of its kind that came over the same edge and tree,
times the ratio of the models summed in them: (mean of the last) x (new count). The sender keeps no
vector: from the distances that answers report it predicts the next one. Both begin anew with each
epoch of topology. As long as a receiver has no key, or its sender no distance, messages go in full
precision: the first of an epoch to make a key, the second to learn a distance.

All of it depends only on what was sent and answered before over the same edge, which is in order:
the simulator comes to the same pitches, bits and failures as the daemons do.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TypeAlias

from torch import Tensor

from peer.algorithms.core import Epoch, Head, Kind, PeerId
from peer.codec.formats import Format
from peer.codec.lattice import (
    BITS,
    Decoder,
    Distances,
    Encoder,
    distance,
    encoded_bytes,
)

TRAVELLING = frozenset({Kind.RELAY, Kind.GOSSIP, Kind.PUSH})
"""Kinds of messages that come over the same edges again and again. Pairs are drawn: a partner's
last message may be old, and each has a model of its own beside it to decode with."""


@dataclass(frozen=True, slots=True)
class Lattice:
    """How a message is written on the lattice: what its header says, and for its sender the
    distances to be expected, one for each section."""

    bits: int
    seed: int  # 64 bits
    is_rotated: bool = False
    expected: tuple[float, ...] = field(default=(), compare=False)
    is_rounded: bool = field(default=False, compare=False)  # already, by a `Quantizer`

    def encoder(self, section: int) -> Encoder:
        """For a section, from its first element on."""
        return Encoder(
            self.bits,
            self._seed(section),
            self.expected[section],
            is_rotated=self.is_rotated,
            is_rounded=self.is_rounded,
        )

    def decoder(self, section: int, key: Tensor, scale: float) -> Decoder:
        """For a section, next to `key` * `scale`."""
        return Decoder(self.bits, self._seed(section), key, scale, is_rotated=self.is_rotated)

    def _seed(self, section: int) -> int:
        return (self.seed + section) % 2**64


Coding: TypeAlias = Format | Lattice


def payload_bytes(coding: Coding, sections: int, elements: int) -> int:
    """Length of a payload of so many sections of `elements` each."""
    if isinstance(coding, Lattice):
        return sections * encoded_bytes(elements, coding.bits)
    return sections * elements * coding.itemsize


@dataclass(frozen=True, slots=True)
class LatticeSetting:
    """What a run config says of the lattice."""

    bits: int = BITS[0]
    is_rotated: bool = False


class Forecast:
    """The sending end of all edges to one neighbour. One thread at a time."""

    def __init__(self, setting: LatticeSetting | None, seed: int, to: PeerId) -> None:
        """`setting` is None in a run whose messages all go in full precision."""
        self._setting, self._seed, self._to = setting, seed, to
        self._epoch: Epoch | None = None
        self._seen: dict[tuple[Kind, int], list[Distances]] = {}

    def coding(self, head: Head, sections: int, wanted_bits: int | None = None) -> Lattice | None:
        """How to write a message, at first or after the receiver said what it wants; None: in full
        precision."""
        setting = self._setting
        if setting is None or head.kind not in TRAVELLING:
            return None
        bits = setting.bits if wanted_bits is None else wanted_bits
        predicted = [seen.predict(_models(head)) for seen in self._distances(head)]
        expected = tuple(far for far in predicted if far is not None)
        if bits not in BITS or not sections or len(expected) != sections:
            return None
        seed = dither_seed(self._seed, head, self._to)
        return Lattice(bits, seed, setting.is_rotated, expected)

    def answered(self, head: Head, distances: Sequence[float]) -> None:
        """A message was accepted; `distances` are those of its sections from the receiver's key,
        and none if it had no key."""
        if self._setting is None or not distances or head.kind not in TRAVELLING:
            return
        seen = self._distances(head)
        if len(seen) != len(distances):
            seen[:] = [Distances() for _ in distances]
        for one, far in zip(seen, distances, strict=True):
            one.saw(far, _models(head))

    def _distances(self, head: Head) -> list[Distances]:
        if head.epoch != self._epoch:
            self._epoch, self._seen = head.epoch, {}
        return self._seen.setdefault((head.kind, head.tree), [])


@dataclass(frozen=True, slots=True)
class Key:
    """What a message is decoded next to: `vectors` (one for each section) times `scale`."""

    vectors: tuple[Tensor, ...]
    scale: float
    is_rotated: bool

    def decoders(self, coding: Lattice) -> list[Decoder]:
        """One for each section."""
        return [coding.decoder(k, vector, self.scale) for k, vector in enumerate(self.vectors)]

    def distances(self, vectors: Sequence[Tensor]) -> tuple[float, ...]:
        """Of a message that came in full precision."""
        return tuple(
            distance(vector, key, self.scale, is_rotated=self.is_rotated)
            for vector, key in zip(vectors, self.vectors, strict=True)
        )


class Keys:
    """The receiving end of all edges of a peer: the last message of each, which must not change."""

    def __init__(self, setting: LatticeSetting) -> None:
        self._is_rotated = setting.is_rotated
        self._epoch: Epoch | None = None
        self._last: dict[tuple[PeerId, Kind, int], tuple[Head, tuple[Tensor, ...]]] = {}
        self._guard = threading.Lock()

    def find(self, head: Head, sections: int) -> Key | None:
        """For a message with this head; None if nothing like it has come in this epoch."""
        with self._guard:
            last = self._last.get(_edge(head)) if head.epoch == self._epoch else None
        if last is None or len(last[1]) != sections:
            return None
        return Key(last[1], _models(head) / _models(last[0]), self._is_rotated)

    def has(self, head: Head) -> bool:
        """Whether that message has come: a second copy would be another key."""
        with self._guard:
            last = self._last.get(_edge(head))
        return last is not None and last[0] == head

    def remember(self, head: Head, vectors: tuple[Tensor, ...]) -> None:
        """A message was accepted."""
        if head.kind not in TRAVELLING:
            return
        with self._guard:
            if head.epoch != self._epoch:
                self._epoch, self._last = head.epoch, {}
            self._last[_edge(head)] = (head, vectors)


def dither_seed(seed: int, head: Head, to: PeerId) -> int:
    """64 bits that depend on the run's seed and the message's place in the run alone."""
    place = (head.step, head.round, head.exchange, head.tree, head.kind.value, head.sender, to)
    text = repr((seed, *place)).encode()
    return int.from_bytes(
        blake2b(text, digest_size=8, person=b"relayswarm dith").digest(), "little"
    )


def _models(head: Head) -> float:
    """How many models are in each element: in the sums of a relay, as many as it counts, or what
    they weigh. (A weight of 1 is that of any sum where all weigh the same. Should it be a real one,
    the next message is decoded beside the point, and asked for again.)"""
    if head.kind is not Kind.RELAY:
        return 1.0
    return float(max(head.count if head.weight == 1 else head.weight, 0)) or 1.0


def _edge(head: Head) -> tuple[PeerId, Kind, int]:
    return (head.sender, head.kind, head.tree)
