"""From the run config to the objects of a peer: which algorithm, with which options.

An installed package offers an algorithm as an entry point in the group `relayswarm.algorithms`,
whose name is the algorithm's and whose value is the class; its options are the class's `Options`.
Built-in names go first. Nothing is imported but the algorithm that was asked for.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any

from peer.algorithms import ALGORITHMS, make
from peer.algorithms.common_model import CommonModel
from peer.algorithms.core import Algorithm, OptionError, Run
from peer.algorithms.pairwise import Pairwise
from peer.algorithms.synchronous import Synchronous
from peer.offers import Offers
from relayswarm.config import AlgorithmConfig, RunConfig, ShareConfig
from relayswarm.errors import ConfigError

OFFERS = Offers(group="relayswarm.algorithms", field="algorithm.name", noun="algorithm")
NOT_OPTIONS = {"name", "local_steps", "options"}


def find_algorithm(name: str) -> tuple[type[Algorithm], type[Any]]:
    """An algorithm's class, and the dataclass of its options.

    Raises ConfigError for an unknown name and for an offer that is no algorithm.
    """
    if name in ALGORITHMS:
        return ALGORITHMS[name]
    kind = OFFERS.load(name, ALGORITHMS)
    if (
        not (isinstance(kind, type) and issubclass(kind, Algorithm))
        or inspect.isabstract(kind)
        or not dataclasses.is_dataclass(kind.Options)
    ):
        raise ConfigError(
            "algorithm.name",
            name,
            f"names {kind!r}, not an algorithm",
            "derive from peer.algorithms.core.Algorithm, define all its abstract methods, and "
            "make its Options a dataclass",
        )
    return kind, kind.Options


def is_pairwise(name: str) -> bool:
    """Whether the method of that name exchanges copies in pairs. Raises ConfigError as above."""
    return issubclass(find_algorithm(name)[0], Pairwise)


def follows_swarm(config: RunConfig) -> bool:
    """Whether rates follow the swarm's progress, as nobody's steps are common to all. By a script
    they follow a peer's own steps: all of it is known beforehand, and so are the rates."""
    return is_pairwise(config.algorithm.name) and not config.algorithm.options.get("script")


def check_algorithm(config: RunConfig) -> None:
    """Raise ConfigError if the algorithm or one of its options is unknown or unusable."""
    build_algorithm(config)


def algorithm_options(config: RunConfig) -> dict[str, Any]:
    """The options that the config sets for its algorithm. Raises ConfigError."""
    name = config.algorithm.name
    _, options_type = find_algorithm(name)
    given = config.algorithm.model_dump(exclude=NOT_OPTIONS, exclude_none=True)
    given |= config.algorithm.options
    _check_options(name, given, options_type)
    return given | _quasi_global_adam(config, given)


def _quasi_global_adam(config: RunConfig, given: Mapping[str, Any]) -> dict[str, Any]:
    """What else holds for dpsgd-qgm with Adam, whose moments have factors of their own: b = 0."""
    name = config.optimizer.name
    if config.algorithm.name != "dpsgd-qgm" or name in (None, "sgd"):
        return {}
    if name != "adam":
        problem, remedy = "dpsgd-qgm has no form for it", 'set it to "adam" or "sgd"'
        raise ConfigError("optimizer.name", name, problem, remedy)
    if given.get("momentum") is not None:
        problem = 'with optimizer.name = "adam" the factors of dpsgd-qgm are optimizer.betas'
        raise ConfigError("algorithm.momentum", given["momentum"], problem, "leave it out")
    return {"momentum": 0.0}


def build_algorithm(config: RunConfig, start_step: int = 0) -> Algorithm:
    """The algorithm of a run, for one peer. Raises ConfigError."""
    run = Run(
        total_steps=config.steps,
        deadline_s=config.transport.deadline_s,
        adapt_deadline=config.transport.adapt_deadline,
        least_deadline_s=config.transport.least_deadline_s,
        seed=config.seed,
        start_step=start_step,
        local_steps=config.algorithm.local_steps,
        clip=config.robust.clip,
    )
    _check_clip(config)
    _check_wire_format(config)
    options = algorithm_options(config)
    try:
        built = make(*find_algorithm(config.algorithm.name), options, run)
    except OptionError as error:
        inner = "" if error.option.partition(".")[0] in AlgorithmConfig.model_fields else "options."
        option = f"algorithm.{inner}{error.option}"
        raise ConfigError(option, error.value, error.problem, error.remedy) from error
    if options.get("time_budget_s") and isinstance(built, Pairwise):
        _check_time_budget(config, options["time_budget_s"])
    if config.evaluation.before_averaging and not isinstance(built, Synchronous):
        problem = (
            f"{config.algorithm.name} has no steps at the end of which all models are averaged"
        )
        remedy = "leave it out, or choose a method with steps"
        raise ConfigError("evaluation.before_averaging", True, problem, remedy)
    return _with_its_end(config, built, run)


def _with_its_end(config: RunConfig, method: Algorithm, run: Run) -> Algorithm:
    """With the common model after the last step, if the config wants one."""
    stop = config.stop
    for field in ("max_hours", "metric", "common_model"):
        value = getattr(stop, field)
        if value and not isinstance(method, Synchronous):
            problem = f"{config.algorithm.name} has no steps in common, after which all could end"
            raise ConfigError(f"stop.{field}", value, problem, "choose a method with steps")
    if not stop.common_model or not isinstance(method, Synchronous):
        return method
    if config.transport.wire_format not in (None, "float64"):
        problem = "with stop.common_model models have to travel exactly"
        wire_format = config.transport.wire_format
        raise ConfigError("transport.wire_format", wire_format, problem, "leave it out")
    if config.share != ShareConfig():
        problem = "with stop.common_model every peer ends with the same file, and shares all of it"
        raise ConfigError("share", config.share.model_dump(), problem, "leave one of the two out")
    return CommonModel(method, run)


def _check_time_budget(config: RunConfig, budget_s: float) -> None:
    """Where time decides on the number of local steps, nothing else can."""
    if config.deterministic:
        problem = "time would decide on the number of local steps, differently in each run"
        remedy = "leave it out, or set deterministic = false"
        raise ConfigError("algorithm.time_budget_s", budget_s, problem, remedy)
    if config.algorithm.local_steps > 1:
        problem = f"there is algorithm.local_steps = {config.algorithm.local_steps}, too"
        remedy = "leave one of the two out"
        raise ConfigError("algorithm.time_budget_s", budget_s, problem, remedy)


def _check_wire_format(config: RunConfig) -> None:
    """A message on the lattice is decoded next to the last one of the same edge."""
    name, wire_format = config.algorithm.name, config.transport.wire_format
    quantize = config.algorithm.quantize
    if quantize == "lattice" and wire_format is not None:
        problem = 'with algorithm.quantize = "lattice", copies travel on the lattice or exactly'
        raise ConfigError("transport.wire_format", wire_format, problem, "leave it out")
    if wire_format == "lattice" and is_pairwise(name):
        problem = f"{name} draws its partners, so that their last messages are old"
        remedy = 'set algorithm.quantize = "lattice" instead'
        raise ConfigError("transport.wire_format", wire_format, problem, remedy)


def _check_clip(config: RunConfig) -> None:
    """A limit that nobody heeds would be worse than none."""
    kind, _ = find_algorithm(config.algorithm.name)
    if config.robust.clip is not None and not kind.clips:
        able = ", ".join(sorted(name for name, (known, _) in ALGORITHMS.items() if known.clips))
        problem = f"{config.algorithm.name} does not hold its messages to a distance"
        remedy = f"leave it out, or choose one of these methods: {able}"
        raise ConfigError("robust.clip", config.robust.clip, problem, remedy)


def _check_options(name: str, given: Mapping[str, Any], options_type: type[Any]) -> None:
    fields = [field for field in dataclasses.fields(options_type) if field.init]
    known = sorted(field.name for field in fields)
    for option, value in given.items():
        if option not in known:
            problem, remedy = (
                f"{name} has no such option",
                f"it knows: {', '.join(known) or 'none'}",
            )
            raise ConfigError(f"algorithm.{option}", value, problem, remedy)
    for field in fields:
        missing = dataclasses.MISSING
        if field.name not in given and field.default is field.default_factory is missing:
            problem = f"{name} needs this option"
            raise ConfigError(f"algorithm.options.{field.name}", None, problem, "set it")
