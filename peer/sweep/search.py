"""How a learning rate is searched for; what a run is worth at a rate is for others to say.

What belongs here: the two procedures of the RelaySGD paper as functions of a measurement. Scores
are tuples, the lower the better; a run that diverged scores infinity.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

Score: TypeAlias = tuple[float, float]
Measure: TypeAlias = Callable[[float], Score]

FACTOR = 2.0
MOST_DOUBLINGS = 24  # rates a factor of 16 million away from the start are not worth a try
PRECISION = 1.05  # a bisected rate is known up to this factor

DIVERGED: Score = (math.inf, math.inf)


class Tried:
    """Measures each rate once."""

    def __init__(self, measure: Measure) -> None:
        self._measure = measure
        self.scores: dict[float, Score] = {}

    def __call__(self, rate: float) -> Score:
        if rate not in self.scores:
            self.scores[rate] = self._measure(rate)
        return self.scores[rate]


def sandwich(tried: Tried, start: float) -> tuple[float, float, float]:
    """The best power-of-two multiple of `start` between its neighbours that are no better.

    Appendix C.1, 3: multiply and divide by powers of two until the best result so far is between
    two that are worse. Of equally good rates the one tried first is kept. A start that diverges
    is halved until it does not.
    """
    best = next((rate for rate in halves(start) if math.isfinite(tried(rate)[-1])), start)
    for _ in range(MOST_DOUBLINGS):
        for rate in (best * FACTOR, best / FACTOR):
            if tried(rate) < tried(best):
                best = rate
                break
        else:
            break
    return best / FACTOR, best, best * FACTOR


def bisect(tried: Tried, start: float) -> float:
    """The best rate up to `PRECISION`: the sandwich's, then half of each side again and again.

    Appendix C.4 asks for a binary search for the rate that is there first. Steps needed fall with
    the rate until they rise, so the best is always between the neighbours of the best so far.
    """
    low, best, high = sandwich(tried, start)
    while high / low > PRECISION**2:
        left, right = math.sqrt(low * best), math.sqrt(best * high)
        if tried(left) < tried(best):
            low, best, high = low, left, best
        elif tried(right) < tried(best):
            low, best, high = best, right, high
        else:
            low, high = left, right
    return best


def halve_until_all_converge(
    rate: float, seeds: Sequence[int], converges: Callable[[float, int], bool]
) -> tuple[float, list[tuple[float, int]]]:
    """Appendix C.1, 4 and 5: repeat with all seeds; while any diverged, take half the rate.

    Returns the rate and, for each rate tried, how many of the seeds converged with it.
    """
    counts: list[tuple[float, int]] = []
    for candidate in halves(rate):
        converged = sum(converges(candidate, seed) for seed in seeds)
        counts.append((candidate, converged))
        if converged == len(seeds):
            break
    return counts[-1][0], counts


def halves(rate: float) -> Iterator[float]:
    """The rate, half of it, and so on."""
    for power in range(MOST_DOUBLINGS):
        yield rate / FACTOR**power
