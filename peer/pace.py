"""How far a swarm is in which each peer goes at its own pace: its place in the rate's schedule.

In methods that average in pairs nobody's steps are common to all, and a schedule that followed a
peer's own would leave a slow one at high rates while its neighbours, with whom it averages, have
long been at low ones. There the rate follows the mean of all peers' steps, rounded down: with one
batch size, the samples that the swarm has seen, over n. The coordinator forms it from what peers
tell when they renew their leases, and tells it with each view and each answer.

In between, and while no coordinator answers, a peer takes the others to go as it does itself: it is
as many steps further as this peer has done since. It never goes back.
"""

from __future__ import annotations

import math
import threading


class Pace:
    """The place of one peer's next step in a schedule of `total_steps`."""

    def __init__(self, total_steps: int) -> None:
        self._last_step = total_steps - 1
        self._told: tuple[float, int] | None = None  # the swarm's progress, own steps at that
        self._reached = 0
        self._guard = threading.Lock()

    def told(self, progress: float, own: int) -> None:
        """The swarm's peers had done `progress` steps in the mean, this one `own`."""
        if math.isfinite(progress):
            with self._guard:
                self._told = (progress, own)

    def place(self, own: int) -> int:
        """That of this peer's step `own`; the same number while nothing is known of the swarm."""
        with self._guard:
            if self._told is None:
                return own
            progress, then = self._told
            place = min(math.floor(progress + max(0, own - then)), self._last_step)
            self._reached = max(self._reached, place)
            return self._reached
