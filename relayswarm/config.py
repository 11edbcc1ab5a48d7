"""The run config: one TOML file that says everything about a run, shared by all its peers.

The coordinator owns it and hands it to each peer; `relayswarm up` and `relayswarm simulate` read
the same file. What is None here is left to the task (optimizer) or to the algorithm (options).
Loading it needs neither torch nor numpy.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Self

import tomli_w
from pydantic import Field, ValidationError, field_validator, model_validator

from relayswarm.errors import ConfigError
from relayswarm.schema import Section as _Section
from relayswarm.schema import Versioned, first_problem

UNBIASED = frozenset({"relaysgd", "d2", "gradient-tracking"})
"""Methods that end where centralized training does, however much the peers' data differ, as long as
a step is one optimizer step."""


SCHEMA_VERSION = 1
"""Of the run config; when to raise it: docs/stability.md."""


OWN_LOOP = "own-loop"
"""The `task.name` of a run whose peers are programs with a training loop of their own."""


LONGEST = 1 << 20
"""Characters of a config's text: it may come from another machine."""


MANY = 1 << 16
"""Of whatever a peer sets something up for each: peers, shards, samples of a batch, local steps. A
config may come from another machine; beyond it are typing errors and traps."""


LEAST_WEIGHT, LARGEST_WEIGHT = 1e-12, 1e12
"""Of a peer, if it weighs anything at all."""


A_WEIGHT = f"a number from {LEAST_WEIGHT:g} to {LARGEST_WEIGHT:g}, or 0 of a peer without data"


class TaskConfig(_Section):
    """What is learnt."""

    name: str = Field(
        "digits",
        description="A built-in task, one that a package offers, or one in `file`. `own-loop`: "
        "peers are programs that train by themselves (see docs/own-loop.md).",
    )
    file: str | None = Field(
        None,
        description="Python file with the task, from the folder of this config. Other machines "
        "load only the file that `relayswarm peer --task-file` names there.",
    )
    options: dict[str, Any] = Field(default_factory=dict, description="The task's own options.")

    @model_validator(mode="after")
    def _named(self) -> Self:
        if self.file is not None and "name" not in self.model_fields_set:
            raise ValueError("a file needs a name beside it, the `name` of its class")
        return self


class DataConfig(_Section):
    """How the training data are split over peers, and the size of a batch."""

    shards: int | None = Field(
        None, ge=1, le=MANY, description="Number of shards. Unset: one per peer."
    )
    alpha: float | None = Field(
        None,
        gt=0,
        description="Dirichlet parameter of the split: the smaller, the more one-sided are the "
        "classes of a shard. Unset: an even split.",
    )
    partition: Literal["even", "dirichlet", "local"] | None = Field(
        None,
        description="Where a peer's training data come from: its shard of data that all have, cut "
        "evenly or by `alpha`, or whatever lies at its site (see docs/sites.md). Unset: "
        "`dirichlet` if `alpha` is set, else `even`.",
    )
    min_samples: int = Field(
        16, ge=1, description="No shard is smaller; the split is drawn again until it holds."
    )
    batch_size: int = Field(32, ge=1, le=MANY, description="Samples of one peer's batch.")
    weighting: Literal["uniform", "samples", "declared"] = Field(
        "uniform",
        description="What a peer's model weighs in averages: all the same, the number of its "
        "training samples, or what `relayswarm peer --weight` declares (see docs/concepts.md). "
        "Not for gossip and pairwise methods.",
    )
    weights: dict[str, float] = Field(
        default_factory=dict,
        description="With the weighting `declared`: by peer, what those weigh that do not say so "
        "themselves.",
    )
    forward: tuple[str, ...] = Field(
        (),
        description="Peers of `up` and `simulate` without data, of weight 0: they relay for the "
        "others (`relayswarm peer --role forward`).",
    )

    @model_validator(mode="after")
    def _cut_in_one_way(self) -> Self:
        if self.partition == "dirichlet" and self.alpha is None:
            raise ValueError("partition = 'dirichlet' needs alpha, such as 0.1")
        if self.partition in ("even", "local") and self.alpha is not None:
            raise ValueError(
                f"alpha is not used with partition = {self.partition!r}: leave one out"
            )
        return self

    @property
    def is_local(self) -> bool:
        """Whether each peer trains on what lies at its site, and nobody has all data."""
        return self.partition == "local"

    @property
    def weight_range(self) -> tuple[float, float] | None:
        """What a peer with data may weigh; None where all weigh the same."""
        return None if self.weighting == "uniform" else (LEAST_WEIGHT, LARGEST_WEIGHT)

    @field_validator("weights")
    @classmethod
    def _weigh(cls, weights: dict[str, float]) -> dict[str, float]:
        for peer, weight in weights.items():
            if not (weight == 0 or LEAST_WEIGHT <= weight <= LARGEST_WEIGHT):
                raise ValueError(f"{weight} of {peer} is not a weight: {A_WEIGHT}")
        return weights


class AlgorithmConfig(_Section):
    """How peers average. An option that the algorithm does not know is refused; unset, the
    algorithm's own default holds."""

    name: str = Field("relaysgd", description="The algorithm.")
    local_steps: int = Field(1, ge=1, le=MANY, description="Optimizer steps between two exchanges.")
    fallback: Literal["previous", "counts"] | None = Field(
        None,
        description="What relaysgd puts in the place of a missing model: this peer's previous one "
        "(divide by n), or nothing (divide by the models that came).",
    )
    overlap: bool | None = Field(
        None,
        description="relaysgd uses a message one step after it was sent, so that the network has "
        "a step of training to hide behind.",
    )
    weights: Literal["metropolis", "uniform", "lazy", "auto"] | None = Field(
        None, description="Mixing weights of gossip methods."
    )
    momentum: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="The method's own momentum (quasi-global). With adam: `optimizer.betas`.",
    )
    blocking: bool | None = Field(None, description="Pairwise averaging in its blocking form.")
    time_budget_s: float | None = Field(
        None,
        ge=0,
        description="Pairwise methods: seconds of local training before each exchange, instead of "
        "`local_steps` (see docs/concepts.md). 0: off.",
    )
    quantize: Literal["none", "lattice"] | None = Field(
        None,
        description="Pairwise averaging of copies that were rounded at random to a lattice, which "
        "takes 8 bits an element (see docs/concepts.md). Needs `transport.wire_format` unset.",
    )
    neighbour_weights: dict[str, float] | None = Field(
        None,
        description="Pairwise methods: by peer, how likely its neighbours draw it, relative to "
        "their other neighbours; above 0, and 1 for those not named.",
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="Further options of the algorithm."
    )


class OptimizerConfig(_Section):
    """torch's optimizers and the rate's schedule. Unset, the task's defaults hold; they are meant
    for the optimizer that the task names."""

    name: Literal["sgd", "adam", "adamw"] | None = Field(None, description="The optimizer.")
    lr: float | None = Field(None, gt=0, description="Learning rate.")
    momentum: float | None = Field(None, ge=0, lt=1, description="Of sgd; stays on its peer.")
    nesterov: bool | None = Field(None, description="Of sgd; needs momentum.")
    weight_decay: float | None = Field(None, ge=0, description="Weight decay.")
    betas: tuple[float, float] | None = Field(None, description="Of adam and adamw.")
    schedule: Literal["constant", "cosine", "step"] | None = Field(
        None,
        description="How the rate goes on after the warm-up: it stays, falls to 0 along a cosine, "
        "or is multiplied by `decay_factor` at each of `decay_at`. It follows steps: of pairwise "
        "methods the mean of all peers' (see docs/concepts.md).",
    )
    decay_at: tuple[float, ...] | None = Field(
        None,
        description="With the schedule `step`: where it decays, in parts of the run above 0 and "
        "below 1. Unset: 0.75 and 0.9.",
    )
    decay_factor: float | None = Field(
        None, gt=0, le=1, description="With the schedule `step`. Unset: 0.1."
    )
    warmup_steps: int | None = Field(
        None, ge=0, description="Steps in which the rate rises linearly, at first."
    )
    warmup: float | None = Field(
        None, ge=0, lt=1, description="The same as a part of the run, in place of `warmup_steps`."
    )
    warmup_from: float | None = Field(
        None, ge=0, lt=1, description="What part of `lr` the warm-up rises from. Unset: 0."
    )
    autocast: Literal["bfloat16", "float16"] | None = Field(
        None,
        description="Compute the loss in this precision (`torch.autocast`); parameters stay as "
        "they are. With float16 gradients are scaled, and a step whose gradients overflow moves "
        "nothing.",
    )
    relay_lr_correction: bool = Field(
        False,
        description="Multiply the rate by the tree's exact factor, which makes up for models "
        "being relayed with a delay, after the first diameter steps of an epoch.",
    )

    @field_validator("decay_at")
    @classmethod
    def _within_the_run(cls, parts: tuple[float, ...] | None) -> tuple[float, ...] | None:
        if parts and not all(0 < part < 1 for part in parts):
            raise ValueError("a part is not above 0 and below 1")
        return parts

    @model_validator(mode="after")
    def _one_warm_up(self) -> Self:
        if self.warmup_steps and self.warmup:
            raise ValueError("warmup_steps and warmup say the same: leave one of the two out")
        return self


class ShareConfig(_Section):
    """Which part of the model peers have in common: patterns as of file names (`*`, `?`, `[ab]`)
    over the names of parameters and buffers (see docs/sites.md)."""

    include: tuple[str, ...] = Field(
        ("*",), min_length=1, description="What matches one of these is averaged by the swarm."
    )
    exclude: tuple[str, ...] = Field(
        (),
        description="But not what matches one of these. It stays with its peer: it is trained "
        "there and is in the checkpoint, and never in a message.",
    )


class TopologyConfig(_Section):
    """The communication graph and the tree on it."""

    graph: str = Field("random-regular", description="The graph, or `file`.")
    degree: int = Field(3, ge=1, description="Neighbours of each peer in random-regular.")
    probability: float = Field(0.5, gt=0, le=1, description="Of each edge in erdos-renyi.")
    file: str | None = Field(
        None, description='Edge list (`u v cost` a line) or GraphML, for `graph = "file"`.'
    )
    tree: Literal["spanning-tree", "double-binary-trees"] = Field(
        "spanning-tree", description="One tree by the Spanning Tree Protocol, or two binary trees."
    )
    self_heal: bool = Field(
        False,
        description="Whether peers repair the tree by themselves while no coordinator can be "
        "reached (see docs/reliability.md). Not with double-binary-trees.",
    )
    hello_s: float = Field(
        0.5,
        gt=0,
        description="Of `self_heal`: how often neighbours greet each other then. Raised: fewer "
        "messages; lowered: changes are seen sooner.",
    )
    max_age_s: float = Field(
        3.0,
        gt=0,
        description="Of `self_heal`: a neighbour that was silent for so long is gone, and a tree "
        "must have stood for so long before it is used; at least three times `hello_s`. Lowered: "
        "quicker repairs; too low: pauses of a busy machine tear the tree.",
    )

    @model_validator(mode="after")
    def _can_heal(self) -> Self:
        if self.self_heal and self.max_age_s < 3 * self.hello_s:
            raise ValueError("max_age_s is below three times hello_s")
        if self.self_heal and self.tree != "spanning-tree":
            raise ValueError("self_heal repairs a spanning-tree, not double-binary-trees")
        return self


class RobustConfig(_Section):
    """Protection from members who poison the model."""

    clip: float | None = Field(
        None,
        gt=0,
        description="How far a received model may be from this peer's own, as a Euclidean norm "
        "over the whole model; one that is further is drawn up to that distance. Lowered: a "
        "poisoner moves its neighbours by less; too low: honest models are held back, too. Unset: "
        "no limit. For relaysgd, dpsgd and pairwise methods.",
    )


class PrivacyConfig(_Section):
    """What is done to a peer's own movement of each step (from the model before its local steps to
    the one after) before anything is sent. What this promises and what not: docs/sites.md. A site's
    file can ask for more."""

    clip: float | None = Field(
        None,
        gt=0,
        description="Greatest Euclidean norm of the movement, over the whole model; a longer one "
        "is scaled down to it. Unset: no limit.",
    )
    noise_multiplier: float = Field(
        0.0,
        ge=0,
        description="Normal noise of this many times `clip` is added to each element of the "
        "movement. Needs `clip`.",
    )
    delta: float = Field(
        1e-5, gt=0, lt=1, description="The delta for which each peer reports its epsilon."
    )

    @model_validator(mode="after")
    def _in_proportion(self) -> Self:
        if self.noise_multiplier and self.clip is None:
            raise ValueError("noise_multiplier is times clip, which is unset")
        return self


class EvaluationConfig(_Section):
    """When peers evaluate their model; the final model is always evaluated."""

    every: int = Field(0, ge=0, description="Steps between evaluations; 0: only at the end.")
    before_averaging: bool = Field(
        False,
        description="In each evaluation also measure the model before it was averaged, as the "
        "local steps have left it: `before_loss` beside `loss`. Takes a second evaluation.",
    )


class TransportConfig(_Section):
    """How messages travel, and how long to wait for them."""

    wire_format: Literal["float64", "float32", "bfloat16", "float16", "lattice"] | None = Field(
        None,
        description="Number format of models in messages. Unset: float64 for float64 models, "
        "else float32. `lattice`: integers next to the last message of the same edge, 8 bits each "
        "(see docs/concepts.md).",
    )
    lattice_bits: Literal[8, 16] = Field(
        8,
        description="Bits of an element on the lattice, where a receiver does not ask for more. "
        "Raised: twice the bytes, and no message has to be sent again.",
    )
    lattice_rotate: bool = Field(
        False,
        description="Rotate vectors at random before they go on the lattice: less error where few "
        "elements change much more than the rest; takes several times the computation.",
    )
    deadline_s: float = Field(
        30.0,
        gt=0,
        description="Patience with the messages of one step, seconds. Raised: slow peers are "
        "missed less often; lowered: a dead one holds up its neighbours for less.",
    )
    adapt_deadline: bool = Field(
        False,
        description="Let the patience follow how long steps take, up to deadline_s: shorter waits "
        "for peers that hang and messages that are lost (see docs/reliability.md).",
    )
    least_deadline_s: float = Field(
        1.0,
        gt=0,
        description="With adapt_deadline: no less patience than this, seconds. Raised: pauses "
        "such as a checkpoint's are never taken for a loss.",
    )
    linger_s: float = Field(
        30.0, ge=0, description="A finished peer serves its neighbours so many seconds more."
    )


class CoordinatorConfig(_Section):
    """Membership."""

    lease_s: float = Field(
        10.0, gt=0, description="A member that is silent for so long is given up, seconds."
    )
    start_timeout_s: float = Field(
        300.0, gt=0, description="Patience for all peers to come, seconds."
    )


class CheckpointConfig(_Section):
    """When peers write checkpoints; a peer that ends writes one in any case."""

    every: int = Field(100, ge=0, description="Steps between checkpoints; 0: only at the end.")


class EdgeFaults(_Section):
    """Faults of one directed edge; what is left out is as for all edges."""

    sender: str = Field(description="Id of the sending peer.")
    receiver: str = Field(description="Id of the receiving peer.")
    steps: tuple[int, ...] | None = Field(None, description="Only in these steps. Unset: in all.")
    drop: float | None = Field(None, ge=0, le=1, description="As in `[faults]`.")
    delay_s: float | None = Field(None, ge=0, description="As in `[faults]`.")
    jitter_s: float | None = Field(None, ge=0, description="As in `[faults]`.")
    duplicate: float | None = Field(None, ge=0, le=1, description="As in `[faults]`.")

    @model_validator(mode="after")
    def _between_two(self) -> Self:
        if self.sender == self.receiver:
            raise ValueError("sender and receiver are the same peer")
        return self


class PartitionFault(_Section):
    """For some time nothing gets through between a group and the rest."""

    start_s: float = Field(ge=0, description="Seconds since the run began.")
    end_s: float = Field(gt=0, description="Likewise; after start_s.")
    group: tuple[str, ...] = Field(min_length=1, description="Ids of the peers on one side.")

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.end_s <= self.start_s:
            raise ValueError("end_s is not after start_s")
        return self


class CrashFault(_Section):
    """A peer dies at a time, or when it begins a step, and perhaps comes back as a new one that
    asks a neighbour for the model."""

    peer: str = Field(description="Id of the peer.")
    at_s: float | None = Field(None, ge=0, description="Seconds since the run began.")
    at_step: int | None = Field(None, ge=0, description="When it begins this step.")
    rejoin_after_s: float | None = Field(
        None, ge=0, description="Seconds after which it comes back. Unset: never."
    )

    @model_validator(mode="after")
    def _one_moment(self) -> Self:
        if (self.at_s is None) == (self.at_step is None):
            raise ValueError("needs either at_s or at_step")
        return self


class StopConfig(_Section):
    """The end of a run: when it comes, if not after `steps`, and what is made of it."""

    max_hours: float | None = Field(
        None, gt=0, description="End the run so long after it began. Unset: not by time."
    )
    metric: str | None = Field(
        None,
        description="A metric of the task, such as loss: end the run when the swarm's mean of it "
        "gets no better. Needs `evaluation.every`.",
    )
    patience: int = Field(
        3,
        ge=1,
        le=MANY,
        description="Of `metric`: after so many evaluations in a row that are no better than the "
        "best before them.",
    )
    common_model: bool = Field(
        False,
        description="After the last step average all models exactly, once, so that every peer ends "
        "with the same one, and hand it over (see docs/sites.md). Of methods with steps.",
    )
    min_peers: int = Field(
        1,
        ge=1,
        le=MANY,
        description="Of `common_model`: with fewer peers in it, they end with exit code 4.",
    )

    @model_validator(mode="after")
    def _in_common(self) -> Self:
        if self.min_peers > 1 and not self.common_model:
            raise ValueError("min_peers is of the common model; set common_model = true")
        return self


class FaultsConfig(_Section):
    """Faults to inject, for experiments; seeded by the run's seed."""

    drop: float = Field(0.0, ge=0, le=1, description="Probability that a message is lost.")
    loss: Literal["known", "silent"] = Field(
        "known",
        description="Whether a lost message is announced by its header, so that nobody waits, or "
        "noticed by the deadline.",
    )
    delay_s: float = Field(0.0, ge=0, description="Seconds that a message takes longer.")
    jitter_s: float = Field(
        0.0, ge=0, description="And at most so many more, evenly distributed at random."
    )
    reorder: bool = Field(
        False, description="Messages of one edge may overtake each other. Simulator only."
    )
    duplicate: float = Field(0.0, ge=0, le=1, description="Probability that a message comes twice.")
    slow: dict[str, float] = Field(
        default_factory=dict, description="By peer, the factor on the time of its training; >= 1."
    )
    edge: tuple[EdgeFaults, ...] = Field(
        (), description="Faults of single edges. Of several that fit a message the last counts."
    )
    partition: tuple[PartitionFault, ...] = Field((), description="Simulator only.")
    crash: tuple[CrashFault, ...] = Field((), description="Simulator only.")

    @field_validator("slow")
    @classmethod
    def _slower(cls, slow: dict[str, float]) -> dict[str, float]:
        if any(factor < 1 for factor in slow.values()):
            raise ValueError("a factor is below 1")
        return slow


class RunConfig(Versioned):
    """A run. See docs/config.md for each field."""

    newest = SCHEMA_VERSION
    schema_version: int = Field(
        SCHEMA_VERSION, ge=1, le=SCHEMA_VERSION, description="Of this format: docs/stability.md."
    )
    run_id: str = Field(
        "run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$", description="Name of the run."
    )
    peers: int = Field(8, ge=1, le=MANY, description="Peers needed to start.")
    steps: int = Field(
        400, ge=1, le=2**40, description="Of each peer. A step is local training, then an exchange."
    )
    seed: int = Field(0, ge=0, lt=2**31, description="Of everything random.")
    deterministic: bool = Field(
        False,
        description="Deterministic kernels and one thread per peer: the same run ends with the "
        "same parameters, as processes and in the simulator.",
    )
    task: TaskConfig = TaskConfig()
    data: DataConfig = DataConfig()
    algorithm: AlgorithmConfig = AlgorithmConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    share: ShareConfig = ShareConfig()
    topology: TopologyConfig = TopologyConfig()
    robust: RobustConfig = RobustConfig()
    privacy: PrivacyConfig = PrivacyConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    transport: TransportConfig = TransportConfig()
    coordinator: CoordinatorConfig = CoordinatorConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    stop: StopConfig = StopConfig()
    faults: FaultsConfig = FaultsConfig()

    @field_validator("run_id", mode="before")
    @classmethod
    def _text(cls, value: object) -> object:
        return str(value) if isinstance(value, int) else value

    @model_validator(mode="after")
    def _measured(self) -> Self:
        if self.stop.metric is not None and not self.evaluation.every:
            raise ValueError("stop.metric needs evaluations on the way; set evaluation.every")
        return self

    @property
    def shards(self) -> int:
        """Number of data shards: fixed for the whole run, whoever is there."""
        return self.data.shards or max(1, self.peers - len(set(self.data.forward)))

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is allowed, but may not be what was meant; each names the setting and its value."""
        method, local_steps = self.algorithm.name, self.algorithm.local_steps
        if local_steps == 1 or method not in UNBIASED:
            return ()
        return (
            f"algorithm.local_steps = {local_steps}: with more than one, {method} is not "
            "independent of how the peers' data differ any more (see docs/figures.md)",
        )

    def to_toml(self) -> str:
        """As TOML text that `parse` reads back to an equal config."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))


def parse(
    text: str,
    overrides: Iterable[str] = (),
    source: str = "run config",
    folder: Path | None = None,
) -> RunConfig:
    """Read TOML text, apply `section.key=value` overrides, validate.

    A relative `task.file` counts from `folder`, and in an override from the current one. Raises
    ConfigError, naming the field, for anything unknown or out of range.
    """
    if len(text) > LONGEST:
        problem = f"longer than {LONGEST} characters"
        raise ConfigError(source, f"{text[:40]}...", problem, "leave out what is not of the run")
    try:
        tree: dict[str, Any] = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # also digits without end, and brackets
        raise ConfigError(source, str(error), "not valid TOML", "mend that line") from error
    if folder is not None:
        _place_files(tree, folder)
    for override in overrides:
        _apply(tree, override)
    if folder is not None:
        _place_files(tree, Path.cwd())
    return validate(tree)


def _place_files(tree: Mapping[str, Any], folder: Path) -> None:
    """Make paths within the config absolute; those that are stay as they are."""
    task = tree.get("task")
    if isinstance(task, dict) and isinstance(task.get("file"), str):
        task["file"] = str(folder.absolute() / task["file"])


def load(path: Path | None, overrides: Iterable[str] = ()) -> RunConfig:
    """Read a run config file (None: all defaults) and apply overrides. Raises ConfigError.

    A relative `task.file` counts from the file's folder, and in an override from the current one.
    """
    if path is None:
        return parse("", overrides, folder=Path.cwd())
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            "run config", str(path), f"cannot be read ({error})", "check the path"
        ) from error
    return parse(text, overrides, str(path), path.parent)


def validate(tree: Mapping[str, Any]) -> RunConfig:
    """Check a config given as nested dicts. Raises ConfigError for the first thing wrong."""
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        raise first_problem(error, RunConfig, "docs/config.md") from error


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
    except (ValueError, RecursionError):
        return text  # a bare word is a string
