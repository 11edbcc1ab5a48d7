"""What is run: one cell of a table as a run config.

What belongs here: the scale of the experiments, and how a method, a topology and a data split
become a config. Which cells make which table is for `catalogue`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

from relayswarm.config import RunConfig, validate

Method: TypeAlias = Literal[
    "allreduce", "relaysgd", "relaysgd-grad", "dpsgd", "dpsgd-qgm", "d2", "sgp", "swarmsgd"
]

Task: TypeAlias = Literal["fashion-mnist", "ag-news"]

TRAIN_SAMPLES = 20_000  # of 60,000
VALIDATION = 2_000  # of the rest: what rates are chosen by
TEST_SAMPLES = 5_000  # of 10,000: what the last model is measured on
BATCH: Mapping[Task, int] = {"fashion-mnist": 16, "ag-news": 32}  # of one peer, as a rule
WARM_UP = 0.025  # of the run: 5 of 200 epochs
MOMENTUM, WEIGHT_DECAY = 0.9, 1e-4

TRANSFORMER = {"width": 32, "heads": 2, "layers": 1, "length": 32, "vocabulary": 4096}

TREES = "double binary trees"
TOPOLOGIES: Mapping[str, Mapping[str, str]] = {
    TREES: {"graph": "double-binary-trees", "tree": "double-binary-trees"},
    "chain": {"graph": "chain"},
    "ring": {"graph": "ring"},
    "exponential": {"graph": "exponential"},
    "complete": {"graph": "complete"},
}


@dataclass(frozen=True, slots=True)
class Cell:
    """An experiment without its seed and rate.

    `epochs` are passes over all training samples by all peers together, and over its own shard by
    each. `alpha` None cuts the data evenly. `drop` is the probability of losing a message.
    `batch_size` None is that of `BATCH`. Images are learnt with SGD, texts with Adam, which has its
    own momentum.
    """

    method: Method
    topology: str
    momentum: bool = True
    alpha: float | None = None
    epochs: float = 5
    drop: float = 0.0
    peers: int = 16
    local_steps: int = 1
    lattice: bool = False
    batch_size: int | None = None
    task: Task = "fashion-mnist"

    @property
    def key(self) -> str:
        """Its name in the files."""
        parts = [
            self.method,
            self.topology.replace(" ", "-"),
            "momentum" if self.momentum else "plain",
            "even" if self.alpha is None else f"alpha-{self.alpha:g}",
            f"epochs-{self.epochs:g}",
        ]
        parts += [f"drop-{self.drop:g}"] * (self.drop > 0)
        parts += [f"peers-{self.peers}"] * (self.peers != 16)
        parts += [f"local-{self.local_steps}"] * (self.local_steps != 1)
        parts += ["lattice"] * self.lattice
        parts += [f"batch-{self.batch_size}"] * (self.batch_size is not None)
        parts += [self.task] * (self.task != "fashion-mnist")
        return "/".join(parts)

    @property
    def steps(self) -> int:
        """Of each peer: local training, then an exchange."""
        per_epoch = TRAIN_SAMPLES // (self.peers * self.batch)
        return max(1, round(per_epoch * self.epochs / self.local_steps))

    @property
    def batch(self) -> int:
        """Samples of a peer's local step."""
        return self.batch_size or BATCH[self.task]

    def lossless(self) -> Cell:
        """The same with a reliable network: the rate of a run with lost messages is that of it."""
        return replace(self, drop=0.0)

    def tuned_as(self) -> Cell:
        """The cell whose tuned rate this one takes: without lost messages."""
        if self.method == "swarmsgd":  # "we do not alter the other training hyperparameters"
            return SEQUENTIAL
        return replace(self.lossless(), lattice=False)


SEQUENTIAL = Cell("allreduce", "chain", epochs=4, peers=1)
"""Training in one place, the baseline of SwarmSGD: no peers, no averaging."""


def config_of(cell: Cell, rate: float, seed: int, *, validation: bool = False) -> RunConfig:
    """The run; `validation`: models are measured on samples held back, not on the test set."""
    algorithm: dict[str, Any] = {"name": cell.method, "local_steps": cell.local_steps}
    if cell.method == "dpsgd-qgm" and cell.task != "ag-news":
        algorithm["momentum"] = MOMENTUM
    if cell.lattice:
        algorithm["quantize"] = "lattice"
    return validate(
        {
            "peers": cell.peers,
            "steps": cell.steps,
            "seed": seed,
            "task": _task(cell, validation=validation),
            "data": {"batch_size": cell.batch} | ({"alpha": cell.alpha} if cell.alpha else {}),
            "algorithm": algorithm,
            "optimizer": {"lr": rate} | (_adam() if cell.task == "ag-news" else _sgd(cell)),
            "topology": TOPOLOGIES[cell.topology],
            "faults": {"drop": cell.drop},
        }
    )


def _task(cell: Cell, *, validation: bool) -> dict[str, Any]:
    options: dict[str, Any] = {"train_samples": TRAIN_SAMPLES}
    options |= {"validation": VALIDATION} if validation else {"test_samples": TEST_SAMPLES}
    if cell.task == "ag-news":
        return {"name": "text-classification", "options": options | TRANSFORMER}
    return {"name": "fashion-mnist", "options": options | {"network": "strided"}}


def _sgd(cell: Cell) -> dict[str, Any]:
    """Table 6 of the RelaySGD paper."""
    local = cell.momentum and cell.method != "dpsgd-qgm"
    return {
        "name": "sgd",
        "momentum": MOMENTUM if local else 0.0,
        "nesterov": local,
        "weight_decay": WEIGHT_DECAY,
        "schedule": "step",
        "warmup_steps": round(WARM_UP * cell.steps),
    }


def _adam() -> dict[str, Any]:
    """Table 8 of the RelaySGD paper."""
    return {"name": "adam", "weight_decay": 0.0, "schedule": "constant"}
