"""What tests of the documentation share: its pages, and the blocks of code that stand in them."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = (
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
)
FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
RUNNABLE = ("simulate", "topology", "certs")
"""Commands that need nobody else; run for real, training with few steps."""

Run = Callable[..., int]


@dataclass(frozen=True)
class Block:
    """A fenced block of a page, and the line that it begins in."""

    page: Path
    line: int
    language: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page.name}:{self.line}"

    def commands(self) -> Iterator[list[str]]:
        """The words of each command of a shell block, without comments."""
        for line in self.text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words:
                yield words


def blocks_of(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for found in FENCE.finditer(text):
        yield Block(page, text.count("\n", 0, found.start()) + 1, found[1], found[2])


BLOCKS = tuple(block for page in PAGES for block in blocks_of(page))


def runnable() -> dict[str, list[str]]:
    """Arguments of each different command of shell blocks that can be run as it stands."""
    shells = (block for block in BLOCKS if block.language == "bash")
    found: dict[str, list[str]] = {}
    for program, *arguments in (words for block in shells for words in block.commands()):
        is_ours = program == "relayswarm" and arguments[0] in RUNNABLE
        if is_ours and not {"sine", "--sweep"} & {*arguments}:
            found[shlex.join(arguments)] = arguments
    return found


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    for name in {"block", "bash_block", "toml_block"} & {*metafunc.fixturenames}:
        language = name.removesuffix("block").rstrip("_")
        chosen = [block for block in BLOCKS if language in ("", block.language)]
        metafunc.parametrize(name, chosen, ids=[block.place for block in chosen])
    if "shown_command" in metafunc.fixturenames:
        found = runnable()
        metafunc.parametrize("shown_command", found.values(), ids=list(found))


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def pages() -> dict[Path, str]:
    """Text of every page, by path."""
    return {path: path.read_text(encoding="utf-8") for path in PAGES}


@pytest.fixture(scope="session")
def blocks() -> Callable[[str], list[tuple[Path, str]]]:
    """All fenced blocks of a language, each with the page it stands in."""
    return lambda language: [(b.page, b.text) for b in BLOCKS if b.language == language]


@pytest.fixture(scope="session")
def commands() -> list[list[str]]:
    """The arguments of every `relayswarm` command in a bash block."""
    shells = (block for block in BLOCKS if block.language == "bash")
    lines = (words for block in shells for words in block.commands())
    return [words[1:] for words in lines if words[0] == "relayswarm"]


@pytest.fixture
def relayswarm(relayswarm: Run, tmp_path: Path) -> Run:
    """The same in a folder with the examples."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    return relayswarm
