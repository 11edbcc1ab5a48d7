"""Whose turn it is: anybody's, or as a script of interactions says.

Pairwise methods draw their partners, so no two runs are alike. With a script they repeat one: each
peer goes through the interactions that it takes part in, in their order, calls when it is its turn
and answers BUSY to calls that are not next. Interactions without a common peer commute, so that is
all the order there is. A turn is given up when a deadline has passed for each interaction that may
come before it, so that a peer that died does not stop the others. A script starts over on a resume.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from peer.algorithms.core import OptionError, PeerId


@dataclass(frozen=True, slots=True)
class Interaction:
    """The initiator takes local steps, then the two average (blocking form: both take them)."""

    initiator: PeerId
    partner: PeerId
    local_steps: int = 1


def parse_script(rows: Iterable[Sequence[Any]]) -> tuple[Interaction, ...]:
    """Read rows of (initiator, partner[, local steps]). Raises OptionError."""
    return tuple(_interaction(k, row) for k, row in enumerate(rows))


def _interaction(k: int, row: Sequence[Any]) -> Interaction:
    match row:
        case [str(initiator), str(partner), *rest] if initiator != partner and len(rest) < 2:
            steps = rest[0] if rest else 1
            if isinstance(steps, int) and steps >= 1:
                return Interaction(initiator, partner, steps)
    problem, remedy = "not an interaction", "write [initiator, partner, local steps of at least 1]"
    raise OptionError(f"script[{k}]", row, problem, remedy)


@dataclass(frozen=True, slots=True)
class Turn:
    """One peer's part in an interaction; `number` is the interaction's place in the script."""

    number: int
    calls: bool
    other: PeerId
    local_steps: int


class Turns:
    """No script: it is always everybody's turn."""

    next: Turn | None = None
    next_call: Turn | None = None
    scripted = False
    count = 0  # turns of this peer that are over

    @property
    def mine(self) -> bool:
        """Whether this peer may call now."""
        return True

    def is_of(self, initiator: PeerId) -> bool:  # noqa: ARG002
        """Whether this peer may be called by `initiator` now."""
        return True

    def ends_at(self, trained_at: float, deadline_s: float) -> float:
        """When to give up the present turn."""
        return trained_at + deadline_s

    def done(self, now: float) -> None:
        """The next turn is over."""

    def keep(self, members: Container[PeerId], now: float) -> None:
        """Some peers are no longer there."""


class Script(Turns):
    """One peer's turns, those that it is done with taken away."""

    scripted = True

    def __init__(self, interactions: Sequence[Interaction], me: PeerId) -> None:
        turns = (_turn(k, row, me) for k, row in enumerate(interactions))
        self._turns = [turn for turn in turns if turn]
        self._last = -1  # number of the turn before the next
        self._since = 0.0
        self._find_next()

    @property
    def mine(self) -> bool:
        return self.next is not None and self.next.calls

    def is_of(self, initiator: PeerId) -> bool:
        turn = self.next
        return turn is not None and not turn.calls and turn.other == initiator

    def ends_at(self, trained_at: float, deadline_s: float) -> float:
        ahead = self.next.number - self._last if self.next else 0
        return max(trained_at, self._since) + deadline_s * (1 + ahead)

    def done(self, now: float) -> None:
        if self._turns:
            self._last = self._turns.pop(0).number
            self.count += 1
        self._since = now
        self._find_next()

    def keep(self, members: Container[PeerId], now: float) -> None:
        self._turns = [turn for turn in self._turns if turn.other in members]
        self._since = now
        self._find_next()

    def _find_next(self) -> None:
        self.next = next(iter(self._turns), None)
        self.next_call = next((turn for turn in self._turns if turn.calls), None)


def _turn(number: int, row: Interaction, me: PeerId) -> Turn | None:
    if row.initiator == me:
        return Turn(number, True, row.partner, row.local_steps)
    if row.partner == me:
        return Turn(number, False, row.initiator, row.local_steps)
    return None
