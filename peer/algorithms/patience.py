"""How long a peer waits for the messages of a step: a fixed time, or one that follows the steps.

A deadline that is too long costs time at each silent loss, one that is too short costs messages.
The adapted one is

    deadline = min(deadline_s, max(least_deadline_s, 6 T) * 2^k)

with T the shortest of the last 64 steps in which this peer awaited nothing in vain (from the end of
one step to the end of the next), and k the number of steps in a row that ended with a time-out: a
deadline that is too short doubles until it is not. Until 8 steps are measured it is deadline_s.

Why the shortest, and not a mean with its deviation, as TCP has it (RFC 6298): a peer's wait is a
long step for all who wait for that peer, so waits would make deadlines longer, and longer ones make
waits longer, up to deadline_s (measured: docs/reliability.md). The shortest step is one in which
nobody waited in vain, as long as there is one in 64. All peers in lockstep measure about the same,
so those behind a peer that waits in vain are as patient as it is.
"""

from __future__ import annotations

from collections import deque

FEWEST_SAMPLES, SAMPLES = 8, 64
FACTOR = 6
MOST_DOUBLINGS = 16


class Patience:
    """The deadline of one peer. Never more than `most_s` seconds, and if `adapts` is not set never
    less; otherwise at least `least_s`, or `most_s` where that is less."""

    def __init__(self, most_s: float, least_s: float, *, adapts: bool) -> None:
        self._most_s, self._least_s, self._adapts = most_s, least_s, adapts
        self._steps_s: deque[float] = deque(maxlen=SAMPLES)
        self._doublings = 0
        self._since: float | None = None
        self.deadline_s = most_s

    def restart(self) -> None:
        """What passes until the next end of a step is no step: an epoch begins, or a pause."""
        self._since = None

    def step_ended(self, now: float, *, timed_out: bool) -> None:
        """A step has ended at time `now`; `timed_out`: some message was awaited in vain."""
        if not self._adapts:
            return
        since, self._since = self._since, now
        self._doublings = min(self._doublings + 1, MOST_DOUBLINGS) if timed_out else 0
        if since is not None and not timed_out:
            self._steps_s.append(now - since)
        if len(self._steps_s) >= FEWEST_SAMPLES:
            patience_s = max(self._least_s, FACTOR * min(self._steps_s)) * 2**self._doublings
            self.deadline_s = min(self._most_s, patience_s)
