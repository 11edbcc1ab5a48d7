"""What a model is worth before it is averaged, told beside what it is worth after.

At an evaluation of step s the model is x^(s), the average; before, it was what the local steps of
step s - 1 had made of x^(s-1): x_half, which is local. Both are told as one evaluation, of step s,
with the metrics of x_half under names of their own.

What belongs here: when the first is measured, and how both become one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from peer.outcome import BEFORE
from relayswarm.config import RunConfig
from relayswarm.errors import ConfigError
from relayswarm.task import Measured

Measurements: TypeAlias = Mapping[str, Measured]


class BeforeAveraging:
    """Of one peer. `is_due` says at which steps there are evaluations. Does nothing in a run that
    does not want it."""

    def __init__(self, config: RunConfig, is_due: Callable[[int], bool]) -> None:
        self._is_wanted = config.evaluation.before_averaging
        self._is_due = is_due
        self._step, self._measured = -1, dict[str, Measured]()

    def trained(self, step: int, evaluate: Callable[[], Measurements]) -> None:
        """The local steps of `step` are taken, and the model is not averaged yet."""
        if self._is_wanted and self._is_due(step + 1):
            self._step = step + 1
            self._measured = {BEFORE + name: value for name, value in evaluate().items()}

    def joined(self, step: int, after: Measurements) -> dict[str, Measured]:
        """All that was measured for the evaluation of `step`; `after` alone if this peer has not
        trained in the step before it. Raises ConfigError if a name stands for both."""
        before = self._measured if step == self._step else {}
        for name in before.keys() & after.keys():
            problem = "is the name of what is measured before averaging, too"
            remedy = "call it something else, or set evaluation.before_averaging = false"
            raise ConfigError(f"task.evaluate.{name}", after[name].value, problem, remedy)
        return {**after, **before}
