"""What tests of the documentation share: its pages, and the commands that stand in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from peer import cli

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))

Blocks = Callable[[str], list[tuple[Path, str]]]
Run = Callable[..., int]


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def pages() -> dict[Path, str]:
    """Text of every page, by path."""
    return {path: path.read_text(encoding="utf-8") for path in PAGES}


@pytest.fixture(scope="session")
def blocks(pages: dict[Path, str]) -> Blocks:
    """All fenced blocks of a language, each with the page it stands in."""

    def of(language: str) -> list[tuple[Path, str]]:
        fence = re.compile(rf"^```{language}\n(.*?)^```$", re.DOTALL | re.MULTILINE)
        return [(path, found) for path, text in pages.items() for found in fence.findall(text)]

    return of


@pytest.fixture(scope="session")
def commands(blocks: Blocks) -> list[list[str]]:
    """The arguments of every `relayswarm` command in a bash block."""
    lines = [line for _, block in blocks("bash") for line in block.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("relayswarm ")]


@pytest.fixture
def relayswarm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """The command line in this process, in an empty folder; returns the exit code."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> int:
        with pytest.raises(SystemExit) as ended:
            cli.main(list(arguments))
        return int(ended.value.code or 0)

    return run
