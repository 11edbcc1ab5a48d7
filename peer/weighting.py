"""What peers weigh in averages, and which of them have no data.

What belongs here: the rules between run config and command line. What algorithms make of weights is
in `peer.algorithms.relaying`; how they are published, in `coordinator.views`.
"""

from __future__ import annotations

from collections.abc import Iterable

from coordinator.admission import shard_for
from peer.algorithms import ALGORITHMS
from peer.algorithms.core import PeerId
from peer.config import find_algorithm
from relayswarm.config import A_WEIGHT, LARGEST_WEIGHT, LEAST_WEIGHT, RunConfig
from relayswarm.errors import ConfigError

UNIFORM, SAMPLES = "uniform", "samples"


def require_weight(field: str, weight: float) -> float:
    """The weight, if it is one of a peer with data. Raises ConfigError."""
    if LEAST_WEIGHT <= weight <= LARGEST_WEIGHT:
        return weight
    problem = "a peer with data weighs something" if weight == 0 else "not a weight"
    remedy = f"give {A_WEIGHT}"
    if weight == 0:
        remedy = (
            "give a weight above 0, or have the peer forward only: --role forward, data.forward"
        )
    raise ConfigError(field, weight, problem, remedy)


def require_declared(weight: float | None, *, forwards: bool) -> float | None:
    """The weight that a peer declares, if it may. Raises ConfigError."""
    if weight is None or (forwards and weight == 0):
        return weight
    if forwards:
        problem = "a peer that only forwards weighs nothing"
        raise ConfigError("--weight", weight, problem, "leave it out")
    return require_weight("--weight", weight)


def check_weighting(config: RunConfig) -> None:
    """Raise ConfigError if what the config says of weights contradicts itself, or is more than its
    algorithm can do."""
    data = config.data
    if data.weighting != UNIFORM:
        require_weighing(config, "data.weighting", data.weighting)
    if data.weights and data.weighting != "declared":
        problem = f"not used, as data.weighting is {data.weighting!r}"
        remedy = 'leave it out, or set data.weighting to "declared"'
        raise ConfigError("data.weights", dict(data.weights), problem, remedy)
    if data.forward:
        require_weighing(config, "data.forward", list(data.forward))
    if len(set(data.forward)) >= config.peers:
        problem = f"so none of {config.peers} peers would train"
        raise ConfigError("data.forward", list(data.forward), problem, "leave out one that trains")
    for peer, weight in data.weights.items():
        if peer not in data.forward:
            require_weight(f"data.weights.{peer}", weight)
        elif weight:
            problem = "a peer of data.forward weighs nothing"
            raise ConfigError(
                f"data.weights.{peer}", weight, problem, "leave it out of one of both"
            )


def require_weighing(config: RunConfig, field: str, value: object) -> None:
    """Raise ConfigError if the run's algorithm cannot do with peers that weigh differently."""
    name = config.algorithm.name
    if find_algorithm(name)[0].weighs:
        return
    able = ", ".join(sorted(name for name, (kind, _) in ALGORITHMS.items() if kind.weighs))
    problem = f"{name} averages models that all weigh the same"
    raise ConfigError(
        field, value, problem, f"leave it out, or choose one of these methods: {able}"
    )


def weight_of(
    config: RunConfig,
    peer: PeerId,
    samples: int,
    *,
    forwards: bool = False,
    declared: float | None = None,
) -> float:
    """What a peer with so many training samples weighs in this run; `forwards`: it has no data;
    `declared` is what it says itself. Raises ConfigError."""
    weighting = config.data.weighting
    if forwards:
        require_weighing(config, "--role", "forward")
        return 0.0
    if weighting != "declared":
        if declared is not None:
            problem = (
                f"this run has data.weighting = {weighting!r}: its peers do not declare weights"
            )
            raise ConfigError("--weight", declared, problem, "leave it out")
        if weighting == SAMPLES and not samples:
            problem = f"{peer} does not know how many training samples it has"
            raise ConfigError("data.weighting", weighting, problem, 'set it to "declared"')
        return float(samples) if weighting == SAMPLES else 1.0
    weight = config.data.weights.get(peer) if declared is None else declared
    if weight is None:
        problem = f"in this run peers declare what they weigh, and {peer} does not"
        remedy = f"start it with --weight, or name it in data.weights: {A_WEIGHT}"
        raise ConfigError("--weight", None, problem, remedy)
    return require_weight("--weight" if declared is not None else f"data.weights.{peer}", weight)


def shards_of(config: RunConfig, peers: Iterable[PeerId]) -> dict[PeerId, int]:
    """The shard of each of a run's first peers, as a coordinator would give them out to peers that
    come in this order; 0, which they never read, for those that only forward."""
    held: dict[int, PeerId] = {}
    shards: dict[PeerId, int] = {}
    for peer in peers:
        forwards = peer in config.data.forward
        shards[peer] = 0 if forwards else shard_for(peer, config.shards, held)[0]
        if not forwards:
            held.setdefault(shards[peer], peer)
    return shards
