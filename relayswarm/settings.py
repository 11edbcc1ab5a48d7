"""Where the settings of a run config come from: environment, `--set` and flags, over the file.

What comes later wins: defaults, the file, variables named after settings (RELAYSWARM_DATA__ALPHA is
`data.alpha`), variables that stand for options of a command (RELAYSWARM_UP_SET), `--set`, flags.
"""

from __future__ import annotations

import difflib
import json
import os
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from relayswarm.config import RunConfig, load, parse
from relayswarm.errors import ConfigError
from relayswarm.variables import PREFIX, giving, is_of_others

BETWEEN = "__"

FLAGS = {
    "peers": "peers",
    "task": "task.name",
    "algorithm": "algorithm.name",
    "graph": "topology.graph",
    "steps": "steps",
    "alpha": "data.alpha",
    "seed": "seed",
    "lr": "optimizer.lr",
}
"""Which setting a flag stands for."""


@dataclass(frozen=True, slots=True)
class Override:
    """`key=value` as `--set` takes it, and where it comes from: a variable, `--set`, or a flag."""

    text: str
    source: str

    @property
    def key(self) -> str:
        return self.text.partition("=")[0].strip()


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting in force: its key (`data.alpha`), its value as in TOML, None if unset, and where
    it comes from: `default`, the file's path, a variable, `--set`, or a flag."""

    key: str
    value: Any
    source: str


def of_environment(environment: Mapping[str, str] | None = None) -> list[Override]:
    """Settings that variables are named after, in alphabetical order.

    Of the run itself RELAYSWARM_KEY, of sections RELAYSWARM_SECTION__KEY. Raises ConfigError for
    one that stands neither for a setting nor for anything else that is known by its name
    (`relayswarm.variables`), and for RELAYSWARM_SECTION_KEY.
    """
    known = dict(_keys(RunConfig))
    joined = {key.replace(".", "_"): key for key in known}
    found = []
    for name, value in sorted((os.environ if environment is None else environment).items()):
        if not name.startswith(PREFIX):
            continue
        parts = name.removeprefix(PREFIX).lower().split(BETWEEN)
        key = ".".join(parts)
        if key in known or (len(parts) > 1 and _is_inside_a_table(parts, known)):
            found.append(Override(f"{key}={value}", name))
        elif len(parts) == 1 and is_of_others(name):
            continue
        elif key in joined:
            remedy = f"write {_variable(joined[key])}"
            raise ConfigError(name, value, "has one underscore where two stand for a dot", remedy)
        else:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {_variable(near[0])}?" if near else "see docs/config.md"
            raise ConfigError(name, value, "stands for no setting", hint)
    return found


def overrides_in_force(
    overrides: Sequence[str] | None, flags: Mapping[str, object]
) -> list[Override]:
    """What a command puts over the file, what wins last: variables named after settings, those
    that stand for options, `--set` and flags that were typed.

    `overrides` are the values of the command's parameter `set_`, `flags` those of parameters named
    after keys of `FLAGS`. Raises ConfigError as `of_environment` does.
    """
    given = [("set_", "--set", text) for text in overrides or ()]
    given += [
        (flag, f"--{flag}", f"{FLAGS[flag]}={json.dumps(value)}")
        for flag, value in flags.items()
        if value is not None
    ]
    found = of_environment()
    typed: list[Override] = []
    for parameter, option, text in given:
        variable = giving(parameter)
        (typed if variable is None else found).append(Override(text, variable or option))
    return [*found, *typed]


def load_over(path: Path | None, overrides: Sequence[Override]) -> RunConfig:
    """The file with overrides over it. Raises ConfigError as `load` does; it names the variable
    that what is wrong comes from, which whoever typed the command may not know of."""
    return _over(lambda texts: load(path, texts), overrides)


def parse_over(text: str, overrides: Sequence[Override]) -> RunConfig:
    """TOML text with overrides over it. Raises ConfigError as `load_over` does."""
    return _over(lambda texts: parse(text, texts), overrides)


def _over(read: Callable[[Sequence[str]], RunConfig], overrides: Sequence[Override]) -> RunConfig:
    try:
        return read([one.text for one in overrides])
    except ConfigError as error:
        places = [
            one.source
            for one in overrides
            if _is_at(error.field, one.key) or (error.field, error.value) == ("--set", one.text)
        ]
        if not (places and places[-1].startswith(PREFIX)):
            raise
        field = f"{places[-1]}: {error.field}"
        raise ConfigError(field, error.value, error.problem, error.remedy) from error


def in_force(path: Path | None, overrides: Sequence[Override]) -> list[Setting]:
    """Every setting of a run, in the order of the reference. Raises ConfigError as `load` does."""
    config = load_over(path, overrides)
    sources = dict.fromkeys(_leaves(_read(path)), str(path))
    for one in overrides:
        sources = {key: source for key, source in sources.items() if not _is_at(key, one.key)}
        sources[one.key] = one.source
    values = config.model_dump(mode="json")
    return [
        Setting(key, value, _source_of(key, sources)) for key, value in _flat(values, RunConfig)
    ]


def _keys(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, bool]]:
    """Settings that a variable can name, and whether they are tables of whatever keys."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _keys(kind, f"{prefix}{name}.")
        elif name != "schema_version":
            yield f"{prefix}{name}", "dict" in str(kind)


def _is_inside_a_table(parts: Sequence[str], known: Mapping[str, bool]) -> bool:
    heads = (".".join(parts[:end]) for end in range(1, len(parts)))
    return all(parts) and any(known.get(head, False) for head in heads)


def _variable(key: str) -> str:
    return PREFIX + key.replace(".", BETWEEN).upper()


def _read(path: Path | None) -> Mapping[str, Any]:
    """The file's content, which `load` has already been through."""
    return tomllib.loads(path.read_text(encoding="utf-8")) if path else {}


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def _flat(
    tree: Mapping[str, Any], model: type[BaseModel] | None, prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        kind = model.model_fields[key].annotation if model else None
        inner = kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None
        if isinstance(value, dict) and (inner or value):
            yield from _flat(value, inner, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _is_at(key: str, place: str) -> bool:
    return key == place or key.startswith(f"{place}.")


def _source_of(key: str, sources: Mapping[str, str]) -> str:
    """Of the setting itself, or of a whole table that it is in; the one named last."""
    found = "default"
    for place, source in sources.items():
        if _is_at(key, place) or _is_at(place, key):
            found = source
    return found


def shown(value: Any) -> str:
    """As TOML has it, for people."""
    return "unset" if value is None else json.dumps(value, ensure_ascii=False)
