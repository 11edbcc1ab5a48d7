"""Scripts of interactions: who averages with whom, in which order, after how many local steps.

Pairwise methods draw their partners, so no two runs are alike. With a script they repeat one: each
peer goes through the interactions that it takes part in, in their order, and answers BUSY to calls
that are not next. Interactions without a common peer commute, so that is the whole order.
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


class Script:
    """One peer's turns, those that it is done with taken away."""

    def __init__(self, interactions: Sequence[Interaction], me: PeerId) -> None:
        self._turns = [turn for k, row in enumerate(interactions) for turn in _turns(k, row, me)]
        self._last = -1  # number of the last turn that is done

    @property
    def next(self) -> Turn | None:
        return self._turns[0] if self._turns else None

    @property
    def next_call(self) -> Turn | None:
        """The next turn in which this peer is the initiator."""
        return next((turn for turn in self._turns if turn.calls), None)

    @property
    def ahead(self) -> int:
        """Interactions since the last turn, up to the next: those that it may have to wait for."""
        return self._turns[0].number - self._last if self._turns else 0

    def done(self) -> None:
        """Go on to the turn after the next."""
        self._last = self._turns.pop(0).number

    def keep(self, members: Container[PeerId]) -> None:
        """Take away the turns with peers that are no longer there."""
        self._turns = [turn for turn in self._turns if turn.other in members]


def _turns(number: int, row: Interaction, me: PeerId) -> list[Turn]:
    if row.initiator == me:
        return [Turn(number, True, row.partner, row.local_steps)]
    if row.partner == me:
        return [Turn(number, False, row.initiator, row.local_steps)]
    return []
