"""Generates docs/config.md from the schema of the run config, or checks that it is fresh.

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

from coordinator.graphs import GRAPH_NAMES
from peer.algorithms import ALGORITHMS
from peer.tasks.registry import BUILT_IN
from relayswarm.config import RunConfig

TARGET = Path(__file__).resolve().parents[1] / "docs" / "config.md"
INTRODUCTION = """\
# Run config

<!-- Made by tools/generate_config_reference.py from relayswarm/config.py: edit there. -->

One TOML file says everything about a run. The coordinator owns it and hands it to each peer;
`relayswarm up` and `relayswarm simulate` read the same file. Every setting has a default, so a file
holds only what differs. [examples/demo.toml](../examples/demo.toml) is one.

Settings come from the defaults, then from the file, then from `--set SECTION.KEY=VALUE`, then from
the flags that stand for a setting (`--peers`, `--task`, `--algorithm`, `--graph`, `--steps`,
`--alpha`, `--seed`); what comes later wins. A key that is not listed here is refused.

"Unset" means that the key is left out; TOML has no null. Keys that end in `_s` are in seconds.
"""
CLOSING = """\
## Names

| setting | may be |
| --- | --- |
| `algorithm.name` | {algorithms} |
| `topology.graph` | {graphs} |
| `task.name` | {tasks}, or a task that an installed package offers |

Algorithms and their options: [concepts.md](concepts.md#algorithms). Graphs: `relayswarm topology
--help` shows one as a tree. Tasks: [README](../README.md#a-task-of-your-own).
"""

Schema = Mapping[str, Any]


def reference() -> str:
    """The whole text of docs/config.md."""
    schema = RunConfig.model_json_schema()
    top = {key: field for key, field in schema["properties"].items() if not _refers(field)}
    parts = [INTRODUCTION, "## The run\n", _table(top, set())]
    for key, field in schema["properties"].items():
        if _refers(field):
            parts += _section(key, _definition(schema, field["$ref"]), schema)
    names = {"algorithms": ALGORITHMS, "graphs": (*GRAPH_NAMES, "file"), "tasks": BUILT_IN}
    listed = {what: ", ".join(f"`{name}`" for name in known) for what, known in names.items()}
    return "\n".join([*parts, CLOSING.format(**listed)])


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


def main() -> int:
    """Return 0, or 1 when `--check` finds the committed text stale."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="change nothing, say if it is stale")
    text = reference()
    if not parser.parse_args().check:
        TARGET.write_text(text, encoding="utf-8")
        return 0
    if TARGET.read_text(encoding="utf-8") == text:
        return 0
    print(f"{TARGET.name} is stale: run make docs", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
