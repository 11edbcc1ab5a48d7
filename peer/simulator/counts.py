"""Counts of messages as what they follow from, so that a plan holds while they still grow.

The sum of a relayed message changes from step to step only in its numbers until sums are complete:
the same rows are added, but more models are in them. A `Count` is an ordinary integer to an
algorithm, and remembers, through sums and differences, of which messages' counts it is made. So a
recorded plan says how coefficients follow from counts, and is true for later counts too. Nobody
takes that on trust: every number has its recorded value beside it, to compare with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor

from peer.algorithms.core import Coef


@dataclass(frozen=True, slots=True)
class Formula:
    """constant + the sum of factor * count over the messages in `terms`, (row, factor) each;
    `value` is what that was."""

    constant: int
    terms: tuple[tuple[int, int], ...] = ()
    value: int = field(default=0, compare=False)

    def combined(self, other: Formula, factor: int, others: int) -> Formula:
        """factor * this + others * the other."""
        terms = tuple((row, factor * f) for row, f in self.terms)
        terms += tuple((row, others * f) for row, f in other.terms)
        constant = factor * self.constant + others * other.constant
        return Formula(constant, terms, factor * self.value + others * other.value)


Number: TypeAlias = float | Formula


class Count(int):
    """A count that knows what it follows from. Anything but a sum or difference forgets it."""

    formula: Formula

    def __new__(cls, formula: Formula) -> Count:
        count = super().__new__(cls, formula.value)
        count.formula = formula
        return count

    @staticmethod
    def of(value: int, row: int) -> Count:
        """The count of the message in that row."""
        return Count(Formula(0, ((row, 1),), value))

    def __add__(self, other: int) -> int:
        return self._combined(other, 1, 1)

    __radd__ = __add__

    def __sub__(self, other: int) -> int:
        return self._combined(other, 1, -1)

    def __rsub__(self, other: int) -> int:
        return self._combined(other, -1, 1)

    def _combined(self, other: int, factor: int, others: int) -> int:
        if not isinstance(other, int):
            return NotImplemented
        return Count(self.formula.combined(formula_of(other), factor, others))


def formula_of(count: int) -> Formula:
    """How a count follows from others; one that is known by its value alone, from none."""
    return count.formula if isinstance(count, Count) else Formula(count, value=count)


def number(coef: Coef) -> Number:
    """A coefficient as a plan holds it."""
    return coef.formula if isinstance(coef, Count) else float(coef)


class Numbers:
    """Numbers of a stage as a tensor, shape (k,) in float64."""

    def __init__(self, numbers: Sequence[Number], device: torch.device) -> None:
        formulas = [(k, n) for k, n in enumerate(numbers) if isinstance(n, Formula)]
        fixed = [float(n.constant) if isinstance(n, Formula) else n for n in numbers]
        values = [float(n.value) if isinstance(n, Formula) else n for n in numbers]
        self.recorded = torch.tensor(values, dtype=torch.float64, device=device)
        terms = [(k, *term) for k, formula in formulas for term in formula.terms]
        self._fixed = torch.tensor(fixed, dtype=torch.float64, device=device)
        self._places = torch.tensor([k for k, _, _ in terms], dtype=torch.int64, device=device)
        self._rows = torch.tensor([row for _, row, _ in terms], dtype=torch.int64, device=device)
        factors = [factor for _, _, factor in terms]
        self._factors = torch.tensor(factors, dtype=torch.float64, device=device)
        self.is_fixed = not terms

    def now(self, counts: Tensor) -> Tensor:
        """With these counts of messages, by row."""
        if self.is_fixed:
            return self._fixed
        return self._fixed.index_add(0, self._places, counts[self._rows] * self._factors)
