"""What a peer's transport is told: the contract with its neighbours, and whom it reports to.

What belongs here: the values and protocols on the line between the transport and the daemon,
and the rule by which a header is held against the contract before memory is taken.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import ceil
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from peer.algorithms.core import Epoch, Head, Kind, PeerId, Verdict
from peer.algorithms.metric_relay import MAX_METRICS, SwarmMean
from peer.codec import Bytes, Format, default_format
from peer.codec.edges import TRAVELLING, Coding, Lattice, LatticeSetting
from peer.codec.lattice import BITS
from peer.hellos import Hello
from relayswarm.net.gate import Denial

PROTOCOL_VERSION = 1

PAIR_KINDS = frozenset({Kind.OFFER, Kind.REPLY})
"""Kinds of messages that travel in calls of Exchange."""

METRIC_ELEMENTS = 3  # sum of weight x value, sum of weights, number of peers


@dataclass(frozen=True, slots=True)
class Span:
    """Coordinates [start, stop) of the flat vector."""

    start: int
    stop: int

    @property
    def elements(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Contract:
    """What every message of a run must fit; the same for all its peers."""

    run_id: str
    fingerprint: int  # 64 bits, of the model's parameter names, shapes and types
    elements: int  # d, the length of the flat vector
    dtype: torch.dtype  # of the flat vector
    trees: int = 1
    sections: int = 1  # vectors in each message: 2 where a correction travels along
    wire_format: Format | None = None  # what this peer sends; None: the model's own
    accepted_formats: frozenset[Format] = frozenset(Format)
    lattice: LatticeSetting | None = None  # messages travel on the lattice where that succeeds
    rounding: LatticeSetting | None = None  # of copies of pairs, which are on the lattice already
    seed: int = 0  # of the run
    versions: range = field(default=range(PROTOCOL_VERSION, PROTOCOL_VERSION + 1))

    @property
    def sending_format(self) -> Format:
        """The format in which this peer encodes what it sends."""
        return self.wire_format or default_format(self.dtype)

    def format_of(self, kind: Kind) -> Format:
        """The format in which this peer encodes messages of a kind."""
        return Format.FLOAT64 if kind is Kind.METRIC else self.sending_format

    def takes(self, kind: Kind, coding: Coding) -> bool:
        """Whether this peer takes messages of a kind that are written like this."""
        if isinstance(coding, Lattice):
            setting = self.rounding if kind in PAIR_KINDS else self.lattice
            fits = setting is not None and setting.is_rotated == coding.is_rotated
            return fits and coding.bits in BITS and kind in PAIR_KINDS | TRAVELLING
        return coding in ({Format.FLOAT64} if kind is Kind.METRIC else self.accepted_formats)

    def sections_of(self, kind: Kind) -> range:
        """How many sections messages of a kind may have: algorithms count on all of theirs."""
        most = MAX_METRICS if kind is Kind.METRIC else self.sections
        return range(1 if kind is Kind.METRIC else most, most + 1)

    def dtype_of(self, kind: Kind) -> torch.dtype:
        """The dtype of received vectors."""
        return torch.float64 if kind is Kind.METRIC else self.dtype

    def span(self, kind: Kind, tree: int) -> Span | None:
        """The coordinates that a message's sections cover; None if there is no such tree.

        With two trees, relayed sums travel in halves: [0, ceil(d/2)) and [ceil(d/2), d).
        """
        if tree >= (self.trees if kind is Kind.RELAY else 1):
            return None
        if kind is Kind.METRIC:
            return Span(0, METRIC_ELEMENTS)
        if self.trees == 1 or kind is not Kind.RELAY:
            return Span(0, self.elements)
        half = ceil(self.elements / 2)
        return Span(0, half) if tree == 0 else Span(half, self.elements)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The model as it was at one moment.

    `vector`, shape (d,), is never changed again; `tensors` are the names and shapes of its
    parts, in order and without gaps.
    """

    vector: Tensor
    step: int
    tensors: tuple[tuple[str, tuple[int, ...]], ...]


@dataclass(frozen=True, slots=True)
class PeerState:
    """How a peer is doing, for its neighbours, status pages and a coordinator that comes back."""

    peer_id: PeerId
    incarnation: int
    epoch: Epoch
    step: int
    state: str  # waiting, training, averaging, finished
    loss: float = 0.0
    models_counted: int = 0
    steps_per_s: float = 0.0  # optimizer steps, over the last seconds
    swarm: SwarmMean | None = None


class Handler(Protocol):
    """Whom a `PeerServer` reports to. Its threads call these, so each must return at once."""

    def admit(self, head: Head) -> Verdict:
        """Is this message of use? Asked before a byte of its payload is taken."""

    def received(self, head: Head, vectors: tuple[Tensor, ...]) -> Verdict:
        """A message is in, whole and checked. Sums of metrics may be refused for what is in them.

        Each vector has shape (elements of the message's span,) and the contract's dtype, lies on
        the CPU and must not be written to. Its memory is used again once no tensor shares it.
        """

    def lost(self, head: Head) -> Verdict:
        """The sender announced that this message is lost. May be refused, as it would have been."""

    def broken(self, head: Head) -> None:
        """A message that was admitted did not come whole, or was damaged. It may come again.

        Not called for one that is asked for again, with more bits: that is still to come."""

    def refused(self, verdict: Verdict, head: Head) -> None:
        """A message got a verdict other than ACCEPTED."""

    def denied(self, denial: Denial, text: str) -> None:
        """A call was turned away at the door; `text` says what was wrong with it."""

    def bytes_in(self, count: int) -> None:
        """So many bytes of messages came in, headers included."""

    def copy(self) -> Tensor:
        """What this peer shares in pairwise exchanges, shape (d,): what a partner's copy is decoded
        next to. May change while it is read."""

    def objection(self, names: frozenset[str]) -> str:
        """Why a caller with these names in its certificate may not read the model; '' if it may."""

    def snapshot(self) -> Snapshot:
        """The live model, copied so that training goes on. May wait for the end of a step."""

    def greeted(self, hello: Hello) -> bool:
        """A neighbour's bridge speaks. False if this run has no bridges."""

    def state(self) -> PeerState:
        """How this peer is doing."""


class Parcel(NamedTuple):
    """A payload on its way out of this peer.

    `known_by` says how far the receiver's name is to be believed: `certificate`, its own word
    (`name`), or that there is none, but an `address`. `kind` is a message's, or `model` for a
    reader; `epoch` is TERM.NUMBER. `bytes` leave, up to the payload's end: all of it, but for a
    reader that goes on from `offset`.
    """

    receiver: str
    known_by: str
    kind: str
    epoch: str
    step: int
    attempt: int
    bytes: int
    offset: int = 0


class Digest(Protocol):
    """As of hashlib."""

    def update(self, data: Bytes, /) -> object: ...
    def hexdigest(self) -> str: ...


class Ledger(Protocol):
    """Who keeps account of what leaves. Transport threads call these."""

    def new_digest(self) -> Digest:
        """For the bytes of a payload."""

    def leaving(self, parcel: Parcel, digest: str | None) -> bool:
        """A payload is about to leave; with its digest: its last byte is. False if it must not."""


class Outgoing(Protocol):
    """A payload: `sections` vectors of `elements` each, whose values are those of now. `lattice` is
    how it is best written, if it was rounded to one. Payloads whose `value` is equal, and not None,
    are equal in every element."""

    sections: int
    elements: int
    lattice: Lattice | None
    value: object | None

    def read(self, section: int, start: int, stop: int, out: Tensor | None = None) -> Tensor:
        """Elements [start, stop) of a section, as a new tensor or in `out`, which is of the same
        dtype. May be called later, from another thread."""

    def close(self) -> None:
        """Nothing will be read any more."""


class Reports(Protocol):
    """Whom an `Outbox` reports to. Its threads call these, so each must return at once."""

    def sent(self, to: PeerId, head: Head, verdict: Verdict | None) -> None:
        """A message was answered; None: it was lost, cancelled, or given up. Once for each."""

    def unreachable(self, peer: PeerId) -> None:
        """A peer does not answer. Once for each outage; tries go on."""

    def retried(self, peer: PeerId, reason: str) -> None:
        """A message will be sent again; `reason` is a verdict or status from a short list."""

    def bytes_out(self, count: int, wire_format: str) -> None:
        """So many bytes of messages written in that format went out, headers included."""
