"""Whom to call for an exchange: each neighbour as likely, or as its weight says, except those that
just failed to answer.

A call that fails (busy, refused, no answer) is followed by one to another neighbour. A peer that
left three calls in a row without any answer, or that the transport calls unreachable, is left out
of 2, 4, ... at most 64 of the steps that follow, or until something comes from it: the counterpart
of rule R6, so that a dead neighbour costs a deadline ever more rarely, and a healed link is found
again even if both its ends had given up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from peer.algorithms.core import PeerId
from peer.algorithms.draw import Draw

FAILURES_BEFORE_REST = 3
LONGEST_REST_LOG2 = 6


class Partners:
    """One peer's memory of how its neighbours answered. A neighbour without a weight has 1."""

    def __init__(self, draw: Draw, weights: Mapping[PeerId, float] | None = None) -> None:
        self._draw = draw
        self._weights = weights or {}
        self._tried: set[PeerId] = set()  # since this peer last began, or paused
        self._failures: dict[PeerId, int] = {}  # calls in a row without any answer
        self._rest_until: dict[PeerId, int] = {}  # step

    def begin(self) -> None:
        """Everybody may be tried again."""
        self._tried = set()

    def pick(self, neighbours: Sequence[PeerId], step: int) -> PeerId | None:
        """A neighbour to call now, if there is one left."""
        left = [peer for peer in self.awake(neighbours, step) if peer not in self._tried]
        if not left:
            return None
        peer = self._draw.weighted(left, [self._weights.get(peer, 1.0) for peer in left])
        self._tried.add(peer)
        return peer

    def awake(self, neighbours: Sequence[PeerId], step: int) -> list[PeerId]:
        """The neighbours that are not left out of this step."""
        return [peer for peer in neighbours if self._rest_until.get(peer, 0) <= step]

    def unanswered(self, peer: PeerId, step: int, *, unreachable: bool = False) -> None:
        """A call of `step` had no answer of any kind."""
        failures = self._failures.get(peer, 0) + 1
        if unreachable:
            failures = max(failures, FAILURES_BEFORE_REST)
        self._failures[peer] = failures
        doublings = failures - FAILURES_BEFORE_REST + 1
        if doublings > 0:
            self._rest_until[peer] = step + 1 + 2 ** min(doublings, LONGEST_REST_LOG2)

    def heard(self, peer: PeerId) -> None:
        """Something came from it."""
        self._failures.pop(peer, None)
        self._rest_until.pop(peer, None)
