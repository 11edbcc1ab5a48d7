"""What formats that are written now and read later have in common: sections and versions.

Run config, a site's law, report, checkpoint: each carries a `schema_version`. It rises when a
reader of before would misunderstand what is written; a release reads its own version and all
earlier ones (docs/stability.md).
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from typing import Any, ClassVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from relayswarm.errors import ConfigError


class Section(BaseModel):
    """A table of a TOML file: unknown keys are refused, and nothing changes once it is read."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Versioned(Section):
    """A whole TOML file, with a `schema_version` of at most `newest`. One of a newer release is a
    ConfigError, and that first of all: what else it has would only be called unknown."""

    newest: ClassVar[int]

    @model_validator(mode="before")
    @classmethod
    def _readable(cls, tree: object) -> object:
        if isinstance(tree, Mapping):
            require_readable("schema_version", tree.get("schema_version", 1), cls.newest)
        return tree


def require_readable(field: str, found: object, newest: int) -> None:
    """Raise ConfigError that names `field` unless `found` is a version from 1 to `newest`."""
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        remedy = f"it is a whole number from 1 to {newest}"
        raise ConfigError(field, found, "no version of this format", remedy)
    if found > newest:
        problem = f"written for a newer release; this one reads versions up to {newest}"
        remedy = "install the release that wrote it, or a newer one"
        raise ConfigError(field, found, problem, remedy)


def first_problem(error: ValidationError, model: type[BaseModel], page: str) -> ConfigError:
    """The first thing wrong with a file of that model, which `page` describes."""
    problem = error.errors()[0]
    path = [str(part) for part in problem["loc"]]
    name = ".".join(path)
    if problem["type"] == "extra_forbidden":
        known = _known_keys(model, path[:-1])
        near = difflib.get_close_matches(path[-1], known, n=1)
        remedy = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
        return ConfigError(name, problem["input"], "unknown key", remedy)
    text = problem["msg"][0].lower() + problem["msg"][1:]
    value = problem["input"]
    if isinstance(value, float) and not math.isfinite(value):
        value = str(value)
    return ConfigError(name, value, text, f"see {page} for what it may be")


def _known_keys(model: Any, section: list[str]) -> list[str]:
    for part in section:
        if not part.isdigit():  # an index into a list of sections
            model = _section(model.model_fields[part].annotation)
    return sorted(model.model_fields)


def _section(annotation: Any) -> Any:
    """The section itself, or of a list of sections that of its members."""
    return next(iter(get_args(annotation)), annotation)
