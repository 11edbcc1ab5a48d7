"""Lists what relayswarm promises to keep (docs/stability.md), one line for each thing.

The lists are committed under tests/stability/snapshots, and a test holds the code against them:
what is public changes on purpose or not at all. `make snapshots` writes them anew.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import io
import json
import pkgutil
import re
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stderr, redirect_stdout
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import generate_config_reference
import generate_tables
from google.protobuf import descriptor_pb2
from pydantic import BaseModel

import relayswarm
from peer.cli import COMMANDS
from relayswarm.config import parse
from relayswarm.coordinator.v1 import coordinator_pb2
from relayswarm.errors import ExitCode
from relayswarm.peer.v1 import peer_pb2

ROOT = Path(__file__).resolve().parents[1]
SNAPSHOTS = ROOT / "tests" / "stability" / "snapshots"
INTERNAL = (
    "relayswarm.net",
    "relayswarm.events",
    "relayswarm.logs",
    "relayswarm.schema",
    "relayswarm.variables",
)
"""Modules under `relayswarm` that coordinator and peers share, and nobody else should import. The
generated code is public as the wire contract."""

_GENERATED = ("relayswarm.peer", "relayswarm.coordinator")
_INTEGRATIONS = "relayswarm.integrations."
_OF_EXTRAS = ("lightning", "lightning.pytorch", "transformers")
"""Packages of which integrations import classes."""


# --- python -----------------------------------------------------------------------------------


def python() -> Iterator[str]:
    """Names that can be imported, with their signatures."""
    for name in relayswarm.__all__:
        value = getattr(relayswarm, name)
        home = getattr(value, "__module__", None)
        yield f"relayswarm.{name}" + (f" is {home}.{value.__name__}" if home else "")
    for module in public_modules():
        for name, value in own_members(module):
            yield from _described(f"{module.__name__}.{name}", value)


def public_modules() -> Iterator[ModuleType]:
    """All modules under `relayswarm` that programs may import, but for itself."""
    for found in pkgutil.walk_packages(relayswarm.__path__, "relayswarm."):
        if found.name.startswith(_INTEGRATIONS):
            yield _integration(found.name)
        elif not found.name.startswith((*INTERNAL, *_GENERATED)):
            yield importlib.import_module(found.name)


class _Standin(ModuleType):
    """In the place of a package that need not be installed: of its classes there are the names."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def _integration(name: str) -> ModuleType:
    """The module, imported the same way everywhere, and for this alone."""
    standins = {package: _Standin(package) for package in _OF_EXTRAS}
    with patch.dict(sys.modules, standins):
        sys.modules.pop(name, None)
        return importlib.import_module(name)


def own_members(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """Public classes and functions of a module, not those that it imports."""
    for name, value in vars(module).items():
        is_own = getattr(value, "__module__", None) == module.__name__
        if is_own and not name.startswith("_") and (isinstance(value, type) or callable(value)):
            yield name, value


def _described(name: str, value: Any) -> Iterator[str]:
    if inspect.isfunction(value):
        yield name + signature(value)
    elif issubclass(value, Enum):
        yield f"{name} enum"
    else:
        yield f"{name} of {', '.join(base.__name__ for base in value.__bases__)}"
        yield from _members(name, value)


def _members(name: str, kind: type[Any]) -> Iterator[str]:
    """Fields of a dataclass, methods and properties; the fields of a config are its keys."""
    if dataclasses.is_dataclass(kind):
        for field in dataclasses.fields(kind):
            yield f"{name}.{field.name}: {field.type}"
    elif not issubclass(kind, BaseModel):
        for key, annotation in vars(kind).get("__annotations__", {}).items():
            yield from () if key.startswith("_") else (f"{name}.{key}: {annotation}",)
    for key, member in vars(kind).items():
        if key == "__init__" and member.__module__ == kind.__module__:
            yield f"{name}{signature(member)}"
        if key.startswith("_") or getattr(member, "__pydantic_decorator__", False):
            continue
        if isinstance(member, property):
            yield f"{name}.{key} property"
        elif isinstance(member, classmethod | staticmethod):
            yield f"{name}.{key}{signature(member.__func__)}"
        elif inspect.isfunction(member):
            yield f"{name}.{key}{signature(member)}"


def signature(function: Callable[..., Any]) -> str:
    """Parameters and result; annotations are text already, and stand without quotes."""
    return re.sub(r"(: |-> )'(.*?)'", r"\1\2", str(inspect.signature(function)))


# --- commands, configuration, metrics: as the reference pages have them -----------------------


def commands() -> Iterator[str]:
    """Commands, their options and defaults. An option also stands for its environment variable."""
    for command in COMMANDS:
        yield f"relayswarm {command}"
        for spelling, default, _ in _rows(generate_tables.options_table(command)):
            yield f"relayswarm {command} {spelling}" + (f" default {default}" if default else "")


def config() -> Iterator[str]:
    """Keys of the run config and of a site's file, with types, limits and defaults; and the names
    that may be values."""
    for section in generate_config_reference.site_reference().split("\n## ")[1:]:
        heading, _, text = section.partition("\n")
        for cells in _rows(text):
            yield f"site.toml {heading}: {cells[0]} {cells[1]}, default {cells[2]}"
    for section in generate_config_reference.reference().split("\n## ")[1:]:
        heading, _, text = section.partition("\n")
        for cells in _rows(text):
            if heading == "Names":
                names = re.findall(r"(?:^|, )`(.+?)`", cells[1])
                yield from (f"{cells[0]} may be {name}" for name in names)
            else:
                yield f"{heading}: {cells[0]} {cells[1]}, default {cells[2]}"
    for name, _, options in _rows(generate_tables.algorithms_table()):
        yield f"algorithm {name}: {options}"


def metrics() -> Iterator[str]:
    """Metrics for Prometheus, with type and labels."""
    for process in ("peer", "coordinator", "member"):
        for name, kind, labels, *_ in _rows(generate_tables.metrics_table(process)):
            yield f"{process} {name} {kind}" + (f" by {labels}" if labels else "")


def events() -> Iterator[str]:
    """Events of `--json` and their fields, as docs/commands.md lists them (and a test checks)."""
    text = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    for name, origin, fields in _rows(text.partition("\n## Events\n")[2].partition("\n## ")[0]):
        for source in origin.split(", "):
            listed = " ".join(re.findall(r"`(\w+)`", fields))
            yield f"{source}: {name} {listed}".rstrip()


def _rows(markdown: str) -> Iterator[list[str]]:
    """Cells of the rows of the one table in a text, below its head."""
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    for line in lines[2:]:
        yield [cell.strip() for cell in re.split(r"(?<!\\)\|", line[1:-1])]


# --- report, exit codes, wire -----------------------------------------------------------------


def report() -> Iterator[str]:
    """Fields of a report's JSON files with their types, from the report of a short run; and of a
    site's audit, by event.

    Its metrics, `loss` and `suboptimality`, are those of its task. The manifest's `config` are the
    keys of the run config.
    """
    yield from (f"audit.jsonl: {line}" for line in _audit_fields())
    for name, content in _short_report().items():
        yield from (f"{name}: {line}" for line in _fields(content))


def _audit_fields() -> Iterator[str]:
    from peer.audit import Audit
    from peer.transport.contract import Parcel

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "audit.jsonl"
        file.write_text("torn")
        audit, parcel = Audit(file), Parcel("peer-1", "name", "relay", "1.1", 0, 0, 0)
        audit.accepted("run", "", {"task": "mine", "task_file": ""})
        audit.leaving(parcel, None)
        audit.leaving(parcel, "")
        audit.refused("law", "")
        audit.close()
        for line in file.read_text().splitlines()[1:]:
            record = json.loads(line)
            yield from (f"{record['event']}: {field}" for field in _fields(record))


def _short_report() -> Mapping[str, Any]:
    from peer.localswarm.session import SessionOptions, simulate  # torch takes a second

    settings = ("task.name=quadratics", "topology.graph=chain", "peers=3", "steps=2")
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        options = SessionOptions(Path(folder), as_json=True)
        with redirect_stderr(io.StringIO()):
            simulate(parse("", (*settings, "evaluation.every=1")), options)
        names = ("report.json", "manifest.json", "history.json")
        return {name: json.loads((Path(folder) / name).read_text()) for name in names}


def _fields(value: Any, path: str = "") -> list[str]:
    if isinstance(value, Mapping) and path != "config":
        found = [line for key in value for line in _fields(value[key], f"{path}.{key}".lstrip("."))]
        return found or [f"{path}: object"]
    if isinstance(value, list):
        found = [line for inner in value for line in _fields(inner, f"{path}[]")]
        return list(dict.fromkeys(found)) or [f"{path}: list"]
    names = {dict: "object", str: "string", bool: "true or false", int: "number", float: "number"}
    return [f"{path}: {names.get(type(value), 'null here')}"]


def exit_codes() -> Iterator[str]:
    """Exit codes of the command line."""
    yield from (f"{code.value} {code.name}" for code in ExitCode)


def proto() -> Iterator[str]:
    """The wire contract: fields and values by number, methods."""
    for file in (peer_pb2.DESCRIPTOR, coordinator_pb2.DESCRIPTOR):
        contract = descriptor_pb2.FileDescriptorProto()
        file.CopyToProto(contract)
        for message in contract.message_type:
            yield from _message(f"{contract.package}.{message.name}", message)
        for enum in contract.enum_type:
            yield from (f"{contract.package}.{enum.name}.{v.name} = {v.number}" for v in enum.value)
        for service in contract.service:
            for method in service.method:
                asked = "stream " * method.client_streaming + method.input_type.lstrip(".")
                answer = "stream " * method.server_streaming + method.output_type.lstrip(".")
                yield f"{contract.package}.{service.name}.{method.name}({asked}) -> {answer}"


def _message(name: str, message: descriptor_pb2.DescriptorProto) -> Iterator[str]:
    kinds = descriptor_pb2.FieldDescriptorProto
    for field in message.field:
        kind = field.type_name.lstrip(".") or kinds.Type.Name(field.type)[5:].lower()
        repeated = "repeated " * (field.label == kinds.LABEL_REPEATED)
        yield f"{name}.{field.name} = {field.number}: {repeated}{kind}"
    for inner in message.nested_type:
        yield from _message(f"{name}.{inner.name}", inner)


KINDS: Mapping[str, Callable[[], Iterator[str]]] = {
    "python": python,
    "commands": commands,
    "config": config,
    "report": report,
    "events": events,
    "metrics": metrics,
    "exit-codes": exit_codes,
    "proto": proto,
}


def listed(kind: str) -> list[str]:
    """What is public of that kind, as the code has it."""
    return sorted({line.replace("`", "") for line in KINDS[kind]()})


def committed(kind: str) -> list[str]:
    """What was public of that kind when its snapshot was committed."""
    return (SNAPSHOTS / f"{kind}.txt").read_text(encoding="utf-8").splitlines()


if __name__ == "__main__":
    for each in KINDS:
        text = "\n".join(listed(each)) + "\n"
        (SNAPSHOTS / f"{each}.txt").write_text(text, encoding="utf-8")
