"""history.json of a report: how the run went, in steps and in time.

It holds what pictures need and report.json, which has the end of things, does not: each peer's
losses, misses and evaluations, and the time line. A long curve is thinned: to means over as many
steps as it takes to keep `POINTS` of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from peer.outcome import Happening, PeerOutcome, RunOutcome
from peer.report_files import SCHEMA_VERSION

POINTS = 500

Losses = Sequence[tuple[int, float | None]]


def history(outcome: RunOutcome, baseline_losses: Losses) -> dict[str, Any]:
    """The content of history.json, as JSON values."""
    return {
        "schema_version": SCHEMA_VERSION,
        "clock": "seconds" if outcome.simulation is None else "virtual seconds",
        "peers": [_course(peer) for peer in outcome.peers],
        "baseline": _curve(baseline_losses),
        "happenings": [asdict(happening) for happening in outcome.happenings],
    }


def _course(peer: PeerOutcome) -> dict[str, Any]:
    missed = list(_blocks(peer.missed))
    evaluations = [{"step": step, "metrics": dict(m)} for step, m in peer.evaluations]
    return {
        "id": peer.id,
        **_curve(peer.losses),
        "missed_until": [block[-1][0] for block in missed],
        "missed": [sum(count for _, count in block) / len(block) for block in missed],
        "evaluations": evaluations,
    }


def _curve(losses: Losses) -> dict[str, Any]:
    """`steps` (the last of those that a mean is of) and `losses`, null where none was finite."""
    blocks = list(_blocks(losses))
    known = [[loss for _, loss in block if loss is not None] for block in blocks]
    return {
        "steps": [block[-1][0] for block in blocks],
        "losses": [sum(values) / len(values) if values else None for values in known],
    }


def _blocks(pairs: Sequence[tuple[int, Any]]) -> Iterator[Sequence[tuple[int, Any]]]:
    size = max(1, -(-len(pairs) // POINTS))
    for start in range(0, len(pairs), size):
        yield pairs[start : start + size]


def losses_of(curve: Mapping[str, Any]) -> Losses:
    """(step, loss) of what `history` made of a curve."""
    return list(zip(curve["steps"], curve["losses"], strict=True))


def course_of(entry: Mapping[str, Any]) -> dict[str, Any]:
    """A peer's part of it, as fields of a PeerOutcome."""
    return {
        "losses": losses_of(entry),
        "missed": list(zip(entry["missed_until"], entry["missed"], strict=True)),
        "evaluations": [(one["step"], one["metrics"]) for one in entry["evaluations"]],
    }


def happenings_of(content: Mapping[str, Any]) -> tuple[Happening, ...]:
    """The time line."""
    return tuple(Happening(**one) for one in content["happenings"])
