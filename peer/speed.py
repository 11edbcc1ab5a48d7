"""How fast a peer trains: optimizer steps per second, over the last seconds that it trained."""

from __future__ import annotations

from collections import deque

WINDOW_S = 10.0


class Speed:
    """Of one peer. Waiting counts: what is measured is how fast the run gets on here."""

    def __init__(self) -> None:
        self._taken: deque[tuple[float, int]] = deque()  # when they were done, and how many
        self.steps_per_s = 0.0

    def took(self, steps: int, now: float) -> None:
        """So many optimizer steps are done at `now` (seconds, monotonic)."""
        taken = self._taken
        taken.append((now, steps))
        while len(taken) > 2 and taken[1][0] < now - WINDOW_S:
            taken.popleft()
        passed = now - taken[0][0]
        if passed > 0:
            self.steps_per_s = (sum(count for _, count in taken) - taken[0][1]) / passed
