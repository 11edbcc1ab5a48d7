"""Performs what an algorithm decides: the part that the daemon and the simulator share.

A `Host` supplies what differs between them (sockets or a simulated network, a thread or a virtual
clock), `Vectors` the arithmetic. One thread feeds events.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

from peer.algorithms.clipping import is_clipped, plain
from peer.algorithms.core import (
    LIVE,
    Algorithm,
    Apart,
    Averaged,
    Cancel,
    Drop,
    Event,
    Finished,
    Head,
    Kind,
    Lin,
    NewView,
    Observe,
    PeerId,
    Quantize,
    Reg,
    Send,
    Set,
    Train,
)


class Vectors(Protocol):
    """Registers of one peer: torch tensors in the product, Fractions in a test."""

    def split(self, trees: int) -> None: ...
    def set_together(self, sets: Sequence[Set]) -> None: ...
    def quantize(self, reg: Reg, lin: Lin, to: PeerId, head: Head) -> None: ...
    def apart(self, lin: Lin) -> None: ...
    def norm(self, lin: Lin, tree: int | None = None) -> float: ...
    def outgoing(self, lins: tuple[Lin, ...], head: Head) -> Any: ...
    def about_to_write(self, name: str) -> None: ...


class Host(Protocol):
    """What a driver needs from its surroundings."""

    def train(self, effect: Train) -> None:
        """Start the local steps; feed `Trained` when they are done."""

    def send(self, to: PeerId, head: Head, outgoing: Any) -> None:
        """Start sending; feed `SendDone` when it is answered or given up."""

    def cancel(self, to: PeerId, head: Head) -> None:
        """Stop sending that message, if it is not there yet."""

    def averaged(self, effect: Averaged) -> None:
        """A step's exchange is complete."""

    def dropped(self, effect: Drop) -> None:
        """A received message went unused."""

    def wants(self, metric: str) -> bool:
        """Whether a metric is worth its evaluation now."""

    def observed(self, metric: str, value: float) -> None:
        """A metric's value."""

    def finished(self, effect: Finished) -> None:
        """The last step is done."""


class Driver:
    """Feeds events to an algorithm and performs its effects in order."""

    def __init__(self, algorithm: Algorithm, vectors: Vectors, host: Host) -> None:
        self.algorithm = algorithm
        self._vectors = vectors
        self._host = host

    def feed(self, event: Event, now: float) -> None:
        if isinstance(event, NewView):
            self._vectors.split(len(event.view.trees))
        sets: list[Set] = []
        ended: list[Averaged] = []
        for effect in self.algorithm.handle(event, now):
            if sets and isinstance(effect, Averaged):
                ended.append(effect)
                continue
            is_plain = isinstance(effect, Set) and not is_clipped(effect.lin)
            if sets and not is_plain:  # it comes after all that is set, and may measure it
                self._set(sets, ended)
                sets, ended = [], []
            if isinstance(effect, Set):
                sets.append(effect if is_plain else self._measured(effect))
            else:
                self._perform(effect)
        if sets:
            self._set(sets, ended)

    def _set(self, sets: Sequence[Set], ended: Sequence[Averaged]) -> None:
        """Registers that are set one after the other, together: one pass over memory does for all.
        The end of a step, between a mean and what is kept of it, is told after both."""
        self._vectors.set_together(sets)
        for effect in ended:
            self._host.averaged(effect)

    def _measured(self, effect: Set) -> Set:
        return replace(effect, lin=self._plain(effect.lin, effect.tree))

    def _perform(self, effect: object) -> None:
        match effect:
            case Quantize(reg, lin, to, head):
                self._vectors.quantize(reg, lin, to, head)
            case Apart(lin):
                self._vectors.apart(self._plain(lin, None))
            case Send(to, head, lins):
                tree = head.tree if head.kind is Kind.RELAY else None
                lins = tuple([self._plain(lin, tree) for lin in lins])
                self._host.send(to, head, self._vectors.outgoing(lins, head))
            case Train():
                self._vectors.about_to_write(LIVE)
                self._host.train(effect)
            case Cancel(to, head):
                self._host.cancel(to, head)
            case Observe(metric, lin, tree):
                if self._host.wants(metric):
                    lin = self._plain(lin, tree)
                    self._host.observed(metric, self._vectors.norm(lin, tree))
            case Drop():
                self._host.dropped(effect)
            case Averaged():
                self._host.averaged(effect)
            case Finished():
                self._host.finished(effect)
            case _:
                raise AssertionError(f"an algorithm emitted {effect!r}")

    def _plain(self, lin: Lin, tree: int | None) -> Lin:
        return plain(lin, lambda difference: self._vectors.norm(difference, tree))
