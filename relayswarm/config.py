"""The run config: one TOML file that says everything about a run, shared by all its peers.

The coordinator owns it and hands it to each peer; `relayswarm up` and `relayswarm simulate` read
the same file. What is None here is left to the task (optimizer) or to the algorithm (options).
Loading it needs neither torch nor numpy.
"""

from __future__ import annotations

import difflib
import math
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Self, get_args

import tomli_w
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from relayswarm.errors import ConfigError


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class TaskConfig(_Section):
    """What is learnt."""

    name: str = "digits"
    options: dict[str, Any] = Field(default_factory=dict)  # each task documents its own


class DataConfig(_Section):
    """Where the data are and how they are split over peers."""

    shards: int | None = Field(default=None, ge=1)  # None: one for each peer
    alpha: float | None = Field(default=None, gt=0)  # heterogeneity (Dirichlet); None: even
    min_samples: int = Field(default=16, ge=1)  # no shard is smaller; the draw is repeated
    batch_size: int = Field(default=32, ge=1)


class AlgorithmConfig(_Section):
    """Which method, and its options; what the method does not know is refused."""

    name: str = "relaysgd"
    local_steps: int = Field(default=1, ge=1)  # optimizer steps between two exchanges
    fallback: Literal["previous", "counts"] | None = None
    overlap: bool | None = None
    weights: Literal["metropolis", "uniform", "lazy", "auto"] | None = None
    momentum: float | None = Field(default=None, ge=0, lt=1)
    blocking: bool | None = None
    options: dict[str, Any] = Field(default_factory=dict)  # of algorithms from elsewhere


class OptimizerConfig(_Section):
    """torch's optimizers and the rate's schedule; None: the task's default."""

    name: Literal["sgd", "adam", "adamw"] | None = None
    lr: float | None = Field(default=None, gt=0)
    momentum: float | None = Field(default=None, ge=0, lt=1)
    nesterov: bool | None = None
    weight_decay: float | None = Field(default=None, ge=0)
    betas: tuple[float, float] | None = None
    schedule: Literal["constant", "cosine"] | None = None
    warmup_steps: int | None = Field(default=None, ge=0)
    relay_lr_correction: bool = False  # apply the tree's exact learning-rate factor


class TopologyConfig(_Section):
    """The communication graph and the tree on it."""

    graph: str = "random-regular"
    degree: int = Field(default=3, ge=1)  # random-regular
    probability: float = Field(default=0.5, gt=0, le=1)  # erdos-renyi
    file: str | None = None  # edge list or GraphML, for graph = "file"
    tree: Literal["spanning-tree", "double-binary-trees"] = "spanning-tree"


class EvaluationConfig(_Section):
    """When peers evaluate their model; the last step is always evaluated."""

    every: int = Field(default=0, ge=0)  # steps; 0: only at the end


class TransportConfig(_Section):
    """How messages travel, and how long to wait for them."""

    wire_format: Literal["float64", "float32", "bfloat16", "float16"] | None = None
    deadline_s: float = Field(default=30.0, gt=0)  # R2: patience with one step's messages
    linger_s: float = Field(default=30.0, ge=0)  # R9: a finished peer goes on serving so long


class CoordinatorConfig(_Section):
    """Membership."""

    lease_s: float = Field(default=10.0, gt=0)
    start_timeout_s: float = Field(default=300.0, gt=0)  # patience for all peers to come


class CheckpointConfig(_Section):
    """When peers write checkpoints; a peer that ends writes one in any case."""

    every: int = Field(default=100, ge=0)  # steps; 0: only at the end


class EdgeFaults(_Section):
    """Faults of one directed edge; what is left out is as for all edges (`[[faults.edge]]`)."""

    sender: str
    receiver: str
    steps: tuple[int, ...] | None = None  # only in these steps; None: in all
    drop: float | None = Field(default=None, ge=0, le=1)
    delay_s: float | None = Field(default=None, ge=0)
    jitter_s: float | None = Field(default=None, ge=0)
    duplicate: float | None = Field(default=None, ge=0, le=1)


class PartitionFault(_Section):
    """For some time nothing gets through between a group and the rest (`[[faults.partition]]`)."""

    start_s: float = Field(ge=0)  # since the run began
    end_s: float = Field(gt=0)
    group: tuple[str, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.end_s <= self.start_s:
            raise ValueError("end_s is not after start_s")
        return self


class CrashFault(_Section):
    """A peer dies at a time, or when it begins a step, and perhaps comes back as a new one that
    asks a neighbour for the model (`[[faults.crash]]`)."""

    peer: str
    at_s: float | None = Field(default=None, ge=0)  # since the run began
    at_step: int | None = Field(default=None, ge=0)
    rejoin_after_s: float | None = Field(default=None, ge=0)  # None: never

    @model_validator(mode="after")
    def _one_moment(self) -> Self:
        if (self.at_s is None) == (self.at_step is None):
            raise ValueError("needs either at_s or at_step")
        return self


class FaultsConfig(_Section):
    """Faults to inject, for experiments; seeded by the run's seed."""

    drop: float = Field(default=0.0, ge=0, le=1)  # probability that a message is lost
    loss: Literal["known", "silent"] = "known"  # announced by a header, or found by the deadline
    delay_s: float = Field(default=0.0, ge=0)  # that a message takes longer
    jitter_s: float = Field(default=0.0, ge=0)  # and at most so much more, at random
    reorder: bool = False  # messages of one edge may overtake each other; simulator only
    duplicate: float = Field(default=0.0, ge=0, le=1)  # probability that a message comes twice
    slow: dict[str, float] = Field(default_factory=dict)  # peer -> factor on its training time
    edge: tuple[EdgeFaults, ...] = ()  # of several that fit a message the last one counts
    partition: tuple[PartitionFault, ...] = ()  # simulator only
    crash: tuple[CrashFault, ...] = ()  # simulator only

    @field_validator("slow")
    @classmethod
    def _slower(cls, slow: dict[str, float]) -> dict[str, float]:
        if any(factor < 1 for factor in slow.values()):
            raise ValueError("a factor is below 1")
        return slow


class RunConfig(_Section):
    """A run. See docs/config.md for each field."""

    schema_version: Literal[1] = 1
    run_id: str = Field(default="run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")
    peers: int = Field(default=8, ge=1)  # needed to start
    steps: int = Field(default=400, ge=1)
    seed: int = Field(default=0, ge=0, lt=2**31)
    deterministic: bool = False
    task: TaskConfig = TaskConfig()
    data: DataConfig = DataConfig()
    algorithm: AlgorithmConfig = AlgorithmConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    topology: TopologyConfig = TopologyConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    transport: TransportConfig = TransportConfig()
    coordinator: CoordinatorConfig = CoordinatorConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    faults: FaultsConfig = FaultsConfig()

    @field_validator("run_id", mode="before")
    @classmethod
    def _text(cls, value: object) -> object:
        return str(value) if isinstance(value, int) else value

    @property
    def shards(self) -> int:
        """Number of data shards: fixed for the whole run, whoever is there."""
        return self.data.shards or self.peers

    def to_toml(self) -> str:
        """As TOML text that `parse` reads back to an equal config."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))


def parse(text: str, overrides: Iterable[str] = (), source: str = "run config") -> RunConfig:
    """Read TOML text, apply `section.key=value` overrides, validate.

    Raises ConfigError, naming the field, for anything unknown or out of range.
    """
    try:
        tree: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(source, error.args[0], "not valid TOML", "mend that line") from error
    for override in overrides:
        _apply(tree, override)
    return validate(tree)


def load(path: Path | None, overrides: Iterable[str] = ()) -> RunConfig:
    """Read a run config file (None: all defaults) and apply overrides. Raises ConfigError."""
    if path is None:
        return parse("", overrides)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            "run config", str(path), f"cannot be read ({error})", "check the path"
        ) from error
    return parse(text, overrides, str(path))


def validate(tree: Mapping[str, Any]) -> RunConfig:
    """Check a config given as nested dicts. Raises ConfigError for the first thing wrong."""
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        raise _first_problem(error) from error


def _apply(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    parts = key.strip().split(".")
    if not equals or not all(parts):
        raise ConfigError(
            "--set", override, "not of the form section.key=value", "write e.g. faults.drop=0.1"
        )
    for part in parts[:-1]:
        tree = tree.setdefault(part, {})
        if not isinstance(tree, dict):
            raise ConfigError("--set", override, f"{part} is not a section", "see docs/config.md")
    tree[parts[-1]] = _toml_value(text.strip())


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text  # a bare word is a string


def _first_problem(error: ValidationError) -> ConfigError:
    problem = error.errors()[0]
    path = [str(part) for part in problem["loc"]]
    name = ".".join(path)
    if problem["type"] == "extra_forbidden":
        known = _known_keys(path[:-1])
        near = difflib.get_close_matches(path[-1], known, n=1)
        remedy = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
        return ConfigError(name, problem["input"], "unknown key", remedy)
    text = problem["msg"][0].lower() + problem["msg"][1:]
    value = problem["input"]
    if isinstance(value, float) and not math.isfinite(value):
        value = str(value)
    return ConfigError(name, value, text, "see docs/config.md for what it may be")


def _known_keys(section: list[str]) -> list[str]:
    model: Any = RunConfig
    for part in section:
        if not part.isdigit():  # an index into a list of sections
            model = _section(model.model_fields[part].annotation)
    return sorted(model.model_fields)


def _section(annotation: Any) -> Any:
    """The section itself, or of a list of sections that of its members."""
    return next(iter(get_args(annotation)), annotation)
