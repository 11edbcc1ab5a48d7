"""The methods by name. Each is a page of its own; add yours to `ALGORITHMS`."""

from collections.abc import Mapping
from typing import Any

from peer.algorithms import (
    adpsgd,
    allreduce,
    d2,
    dpsgd,
    dpsgd_qgm,
    gradient_tracking,
    pairwise,
    relaysgd,
    relaysgd_grad,
    relaysum,
    sgp,
    swarmsgd,
    swarmsgd_blocking,
)
from peer.algorithms.core import Algorithm, Run

ALGORITHMS: Mapping[str, tuple[type[Any], type[Any]]] = {
    "adpsgd": (adpsgd.ADPSGD, pairwise.Options),
    "allreduce": (allreduce.AllReduce, allreduce.Options),
    "d2": (d2.D2, d2.Options),
    "dpsgd": (dpsgd.DPSGD, dpsgd.Options),
    "dpsgd-qgm": (dpsgd_qgm.DPSGDwithQGM, dpsgd_qgm.Options),
    "gradient-tracking": (gradient_tracking.GradientTracking, gradient_tracking.Options),
    "local-sgd": (allreduce.LocalSGD, allreduce.Options),
    "relaysgd": (relaysgd.RelaySGD, relaysgd.Options),
    "relaysgd-grad": (relaysgd_grad.RelaySGDGrad, relaysgd_grad.Options),
    "relaysum": (relaysum.RelaySum, relaysum.Options),
    "sgp": (sgp.SGP, sgp.Options),
    "swarmsgd": (swarmsgd.SwarmSGD, swarmsgd.Options),
}
"""Name -> (algorithm, its options, a dataclass)."""


def build(name: str, options: Mapping[str, Any], run: Run) -> Algorithm:
    """A method of ours by name.

    Raises KeyError for an unknown name, TypeError for an unknown option, OptionError for a bad one.
    """
    return make(*ALGORITHMS[name], options, run)


def make(
    algorithm: type[Any], options_type: type[Any], options: Mapping[str, Any], run: Run
) -> Algorithm:
    """An object of that class. Raises as `build` does for options."""
    chosen = options_type(**options)
    if getattr(chosen, "blocking", False) and algorithm is swarmsgd.SwarmSGD:
        algorithm = swarmsgd_blocking.BlockingSwarmSGD
    built: Algorithm = algorithm(run, chosen)
    return built
