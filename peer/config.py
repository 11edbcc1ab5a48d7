"""From the run config to the objects of a peer: which algorithm, with which options."""

from __future__ import annotations

import dataclasses
import difflib
from typing import Any

from peer.algorithms import ALGORITHMS, build
from peer.algorithms.core import Algorithm, OptionError, Run
from relayswarm.config import RunConfig
from relayswarm.errors import ConfigError

NOT_OPTIONS = {"name", "local_steps", "options"}


def check_algorithm(config: RunConfig) -> None:
    """Raise ConfigError if the algorithm or one of its options is unknown or unusable."""
    build_algorithm(config)


def algorithm_options(config: RunConfig) -> dict[str, Any]:
    """The options that the config sets for its algorithm. Raises ConfigError."""
    name = config.algorithm.name
    if name not in ALGORITHMS:
        near = difflib.get_close_matches(name, ALGORITHMS, n=1)
        remedy = f"did you mean {near[0]!r}? " if near else ""
        known = ", ".join(sorted(ALGORITHMS))
        raise ConfigError("algorithm.name", name, "unknown algorithm", f"{remedy}known: {known}")
    given = config.algorithm.model_dump(exclude=NOT_OPTIONS, exclude_none=True)
    given |= config.algorithm.options
    known_options = {field.name for field in dataclasses.fields(ALGORITHMS[name][1])}
    for option, value in given.items():
        if option not in known_options:
            raise ConfigError(
                f"algorithm.{option}",
                value,
                f"{name} has no such option",
                f"it knows: {', '.join(sorted(known_options)) or 'none'}",
            )
    return given


def build_algorithm(config: RunConfig, start_step: int = 0) -> Algorithm:
    """The algorithm of a run, for one peer. Raises ConfigError."""
    run = Run(
        total_steps=config.steps,
        deadline_s=config.transport.deadline_s,
        seed=config.seed,
        start_step=start_step,
        local_steps=config.algorithm.local_steps,
    )
    try:
        return build(config.algorithm.name, algorithm_options(config), run)
    except OptionError as error:
        option = f"algorithm.options.{error.option}"
        raise ConfigError(option, error.value, error.problem, error.remedy) from error
