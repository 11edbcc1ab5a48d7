"""Whether an algorithm keeps what the swarm relies on; behind `relayswarm.testing`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from peer.algorithms import make
from peer.algorithms.core import Algorithm
from peer.conformance.checks import check_trial
from peer.conformance.resuming import check_resume
from peer.conformance.trials import CALM, trials

DAEMONS = "daemons"


def check(cls: type[Algorithm], options: Mapping[str, Any], peers: int, only: str = "") -> None:
    """All trials, or those whose name contains `only`. Raises AssertionError."""
    chosen = [trial for trial in trials(peers) if only in trial.name]
    if not chosen and only != DAEMONS:
        names = "\n".join([*(trial.name for trial in trials(peers)), DAEMONS])
        raise ValueError(f"trial = {only!r}: there is none; the trials are\n{names}")
    made = partial(make, cls, cls.Options, options)
    for trial in chosen:
        with _replayable(cls, options, peers, trial.name):
            check_trial(trial, made, cls)
            if trial.condition == CALM:
                check_resume(trial, made)
    if only in ("", DAEMONS):
        from peer.conformance.daemons import check_daemons  # it needs torch

        with _replayable(cls, options, peers, DAEMONS):
            check_daemons(cls, options, peers)


@contextmanager
def _replayable(
    cls: type[Algorithm], options: Mapping[str, Any], peers: int, trial: str
) -> Iterator[None]:
    """Adds to whatever goes wrong, in the algorithm's own code too, how to see it again."""
    try:
        yield
    except Exception as error:
        call = f"check_algorithm({cls.__name__}, {dict(options)!r}, peers={peers}, trial={trial!r})"
        error.add_note(f"to try this alone: {call}")
        raise
