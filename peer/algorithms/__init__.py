"""The methods by name. Each is a page of its own; add yours to `ALGORITHMS`."""

from collections.abc import Mapping
from typing import Any

from peer.algorithms import d2, relaysgd, sgp, swarmsgd
from peer.algorithms.core import Algorithm, Run

ALGORITHMS: Mapping[str, tuple[type[Any], type[Any]]] = {
    "d2": (d2.D2, d2.Options),
    "relaysgd": (relaysgd.RelaySGD, relaysgd.Options),
    "sgp": (sgp.SGP, sgp.Options),
    "swarmsgd": (swarmsgd.SwarmSGD, swarmsgd.Options),
}
"""Name -> (algorithm, its options, a dataclass)."""


def build(name: str, options: Mapping[str, Any], run: Run) -> Algorithm:
    """An algorithm by name. Raises KeyError for a name, TypeError for an unknown option."""
    algorithm, options_type = ALGORITHMS[name]
    built: Algorithm = algorithm(run, options_type(**options))
    return built
