"""Generates docs/config.md and docs/site.md from the schemas of run config and site file, or checks
that they are fresh.

Names, types, defaults, limits and texts are those of `relayswarm.config`; the names of algorithms,
graphs and tasks are those of their registries.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from coordinator.graphs import GRAPH_NAMES
from peer.algorithms import ALGORITHMS
from peer.tasks.registry import BUILT_IN
from relayswarm.config import OWN_LOOP, RunConfig
from relayswarm.site import SiteConfig

DOCS = Path(__file__).resolve().parents[1] / "docs"
INTRODUCTION = """\
# Run config

<!-- Made by tools/generate_config_reference.py from relayswarm/config.py: edit there. -->

One TOML file says everything about a run. The coordinator owns it and hands it to each peer;
`relayswarm up` and `relayswarm simulate` read the same file. Every setting has a default, so a file
holds only what differs. [examples/demo.toml](../examples/demo.toml) is one.

Settings come from these places; what comes later wins:

1. the defaults below;
2. the file;
3. variables named after settings: `RELAYSWARM_STEPS` is `steps`, `RELAYSWARM_DATA__ALPHA` is
   `data.alpha`, with two underscores for each dot (one is refused). `up`, `simulate`, `check`,
   `config` and `coordinator` look at them, and refuse any other variable whose name begins with
   `RELAYSWARM_`, but for options of commands and what Kubernetes tells of services; a peer has
   its run's config from the coordinator and does not;
4. variables that stand for [options of a command](commands.md#options-from-the-environment), such
   as `RELAYSWARM_UP_SET`;
5. `--set SECTION.KEY=VALUE`, then the flags that stand for a setting (`--peers`, `--task`,
   `--algorithm`, `--graph`, `--steps`, `--alpha`, `--seed`).

`relayswarm config show RUN.TOML` prints what is in force and where each value comes from. A key
that is not listed here is refused, with the nearest that is. A relative `task.file` counts from the
file's folder, and in an override from the current one.

"Unset" means that the key is left out; TOML has no null. Keys that end in `_s` are in seconds.
"""
SITE = """\
# The site's file

<!-- Made by tools/generate_config_reference.py from relayswarm/site.py: edit there. -->

`relayswarm peer --site site.toml` holds every run against this file, which stays where it is. What
it is for, with examples: [sites.md](sites.md#the-sites-own-law). Everything may be left out. A key
that is not listed here is refused, with the nearest that is. "Unset" means that the key is left
out.
"""
CLOSING = """\
## Names

| setting | may be |
| --- | --- |
| `algorithm.name` | {algorithms} |
| `topology.graph` | {graphs} |
| `task.name` | {tasks}, or a task that an installed package offers, or one in `task.file` |

Algorithms and their options: [concepts.md](concepts.md#algorithms). Graphs: `relayswarm topology
--help` shows one as a tree. Tasks: [own-task.md](own-task.md).
"""

Schema = Mapping[str, Any]


def reference() -> str:
    """The whole text of docs/config.md."""
    parts = [INTRODUCTION, *_sections(RunConfig, "The run")]
    names = {
        "algorithms": ALGORITHMS,
        "graphs": (*GRAPH_NAMES, "file"),
        "tasks": (*BUILT_IN, OWN_LOOP),
    }
    listed = {what: ", ".join(f"`{name}`" for name in known) for what, known in names.items()}
    return "\n".join([*parts, CLOSING.format(**listed)])


def site_reference() -> str:
    """The whole text of docs/site.md."""
    return "\n".join([SITE, *_sections(SiteConfig, "The file")])


def _sections(model: type[BaseModel], heading: str) -> Iterator[str]:
    """A table of what is at the top, then the sections."""
    schema = model.model_json_schema()
    top = {key: field for key, field in schema["properties"].items() if not _refers(field)}
    yield from (f"## {heading}\n", _table(top, set()))
    for key, field in schema["properties"].items():
        if _refers(field):
            yield from _section(key, _definition(schema, field["$ref"]), schema)


def _section(name: str, section: Schema, schema: Schema, brackets: str = "[{}]") -> Iterator[str]:
    """Heading, text and table of a section, then those of the lists of sections in it."""
    yield f"## `{brackets.format(name)}`\n"
    yield " ".join(section["description"].split()) + "\n"
    yield _table(section["properties"], set(section.get("required", ())))
    for key, field in section["properties"].items():
        reference = field.get("items", {}).get("$ref")
        if reference:
            yield from _section(f"{name}.{key}", _definition(schema, reference), schema, "[[{}]]")


def _table(fields: Mapping[str, Schema], required: set[str]) -> str:
    rows = ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    for key, field in fields.items():
        default = "required" if key in required else _default(field)
        rows.append(f"| `{key}` | {_type(field)} | {default} | {field['description']} |")
    return "\n".join(rows) + "\n"


def _default(field: Schema) -> str:
    value = field.get("default", {} if field.get("type") == "object" else None)
    return "unset" if value is None else f"`{json.dumps(value)}`"


def _type(field: Schema) -> str:
    """A field's type and limits, e.g. `integer, >= 1`."""
    kinds = [kind for kind in field.get("anyOf", [field]) if kind.get("type") != "null"]
    return " or ".join(_plain_type(kind) for kind in kinds)


def _plain_type(kind: Schema) -> str:
    if "enum" in kind:
        return ", ".join(f"`{json.dumps(value)}`" for value in kind["enum"])
    if "const" in kind:
        return f"`{kind['const']}`"
    if "prefixItems" in kind:
        return f"list of {len(kind['prefixItems'])} numbers"
    if kind.get("type") == "array":
        inner = kind["items"].get("type")
        return f"list of {inner}s" if inner else "list of tables, below"
    names = {"object": "table", "boolean": "true or false"}
    name = str(kind["type"])
    return ", ".join([names.get(name, name), *_limits(kind)])


def _limits(kind: Schema) -> Iterator[str]:
    signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    for key, sign in signs.items():
        if key in kind:
            yield f"{sign} {kind[key]:g}" if kind[key] < 2**20 else f"{sign} {kind[key]}"
    if "pattern" in kind:
        yield f"matching `{kind['pattern']}`"


def _refers(field: Schema) -> bool:
    return "$ref" in field


def _definition(schema: Schema, reference: str) -> Schema:
    found: Schema = schema["$defs"][reference.rpartition("/")[2]]
    return found


def write_or_check(target: Path, text: str, about: str) -> int:
    """Return 0, or 1 when `--check` finds the committed text stale."""
    parser = argparse.ArgumentParser(description=about.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing, say if it is stale")
    if not parser.parse_args().check:
        target.write_text(text, encoding="utf-8")
        return 0
    if target.read_text(encoding="utf-8") == text:
        return 0
    print(f"{target.name} is stale: run make docs", file=sys.stderr)
    return 1


def main() -> int:
    """Write docs/config.md and docs/site.md, or check them."""
    pages = {"config.md": reference(), "site.md": site_reference()}
    return max(write_or_check(DOCS / name, text, __doc__ or "") for name, text in pages.items())


if __name__ == "__main__":
    sys.exit(main())
