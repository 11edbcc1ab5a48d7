"""Generates docs/api.md from the docstrings of the public modules, or checks that it is fresh.

What is public is what tools/public_interface.py lists.
"""

from __future__ import annotations

import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any

import public_interface
from generate_config_reference import write_or_check
from pydantic import BaseModel

import relayswarm

TARGET = Path(__file__).resolve().parents[1] / "docs" / "api.md"
INTRODUCTION = """\
# Python interface

<!-- Made by tools/generate_api_reference.py from docstrings: edit there. -->

What programs can import. `relayswarm` itself offers
{names};
the modules below are where these are defined, and more.
[stability.md](stability.md) says what may change. The fields of a run config are in
[config.md](config.md), exit codes in [commands.md](commands.md#exit-codes).
"""
CONTRACT = "relayswarm.config"
"""Of its classes only the run config has methods; the others are sections of the file."""


def reference() -> str:
    """The whole text of docs/api.md."""
    offered = ", ".join(f"`{name}`" for name in relayswarm.__all__ if not name.startswith("_"))
    parts = [INTRODUCTION.format(names=textwrap.fill(offered, 100))]
    for module in public_interface.public_modules():
        parts += [f"## {module.__name__}\n", _text(module.__doc__)]
        for name, value in public_interface.own_members(module):
            if not _is_section(module, name, value):
                parts += _entry(f"{module.__name__}.{name}", value)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(parts)).rstrip() + "\n"


def _is_section(module: ModuleType, name: str, value: Any) -> bool:
    return module.__name__ == CONTRACT and inspect.isclass(value) and name != "RunConfig"


def _entry(path: str, value: Any) -> Iterator[str]:
    """Heading, signature and text of a class with its members, or of a function."""
    name = path.rpartition(".")[2]
    yield f"### {path}\n"
    if inspect.isfunction(value):
        yield _code(f"{name}{_signature(value)}")
        yield _text(value.__doc__)
        return
    if _is_called(value):
        yield _code(f"{name}{_signature(value)}")
    yield _text(value.__doc__ if value.__doc__ != BaseModel.__doc__ else "")
    if issubclass(value, Enum):
        yield "\n".join(f"- `{member.name}` = {member.value}" for member in value) + "\n"
        return
    for key, member in vars(value).items():
        function = member.fget if isinstance(member, property) else member
        if key == "__init__" and function.__module__ == value.__module__ and function.__doc__:
            yield _text(function.__doc__)
        elif inspect.isfunction(function) and not key.startswith("_"):
            yield from _member(name, key, member, function)


def _member(owner: str, key: str, member: Any, function: Callable[..., Any]) -> Iterator[str]:
    signature = ""
    if not isinstance(member, property):
        signature = _signature(function)
    yield f"**`{owner}.{key}{signature}`**\n"
    yield _text(function.__doc__)


def _is_called(kind: type[Any]) -> bool:
    """Whether programs make such objects, with arguments that are worth showing."""
    is_abstract = issubclass(kind, Enum | BaseModel) or getattr(kind, "_is_protocol", False)
    return not is_abstract and kind.__init__ not in (Exception.__init__, object.__init__)


def _signature(value: Callable[..., Any]) -> str:
    text = public_interface.signature(value)
    return re.sub(r"\(self(, )?", "(", text).replace(" -> None", "")


def _code(text: str) -> str:
    return f"```text\n{text}\n```\n"


def _text(docstring: str | None) -> str:
    """A docstring as Markdown: indented examples become fenced blocks."""
    lines = inspect.cleandoc(docstring or "").splitlines()
    text = "\n".join(lines)
    example = re.compile(r"(?:^ {4}.*\n?(?:\n(?= {4}))?)+", re.MULTILINE)

    def fenced(found: re.Match[str]) -> str:
        body = inspect.cleandoc("\n" + found[0])
        return f"```python\n{body}\n```\n"

    return example.sub(fenced, text) + "\n"


def main() -> int:
    """Write docs/api.md, or check it."""
    return write_or_check(TARGET, reference(), __doc__ or "")


if __name__ == "__main__":
    sys.exit(main())
