"""Does an algorithm of yours keep what the swarm relies on? One call in one test says so.

Importing this loads neither torch nor `peer`; `check_algorithm` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peer.algorithms.core import Algorithm


def check_algorithm(
    cls: type[Algorithm],
    options: Mapping[str, Any] | None = None,
    *,
    peers: int = 3,
    trial: str = "",
) -> None:
    """Try an algorithm out, with these options of its `Options`.

    In simulated swarms of `peers` and twice as many, with exact arithmetic, under delays, losses,
    duplicates and overtaking messages:

    - replay: fed the same events, of which only the headers are left, it decides the same;
    - losses: every peer finishes, whether losses are announced or silent;
    - conservation: what the class declares in `conserves` holds;
    - resume: a swarm that is stopped in its middle and goes on from what `state` gave (of
      `Synchronous`: from `kept`) ends as if it had never been; None promises nothing.

    And with `peers` real daemons on loopback that learn the task `quadratics`: they end with the
    simulator's models, bit for bit. A method that draws its partners as time goes by cannot, unless
    its options fix who averages with whom. The class has to be importable by its module's name.

    Raises AssertionError with the reason, and with the `trial` to give to try that one alone.
    """
    from peer.conformance import check

    check(cls, dict(options or {}), peers, trial)
