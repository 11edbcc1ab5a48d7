"""Every block of code in the documentation is run, or held against what it speaks of.

- `console`: run and compared with the output shown (test_docs.py).
- `python`: run, each page's blocks one after another.
- `toml`: read as a run config, as a site's own law, or as part of a pyproject.toml.
- `bash`: `relayswarm` commands are parsed by the real command line; those that need nobody else
  are run, training with few steps. make targets, scripts and files exist.
- `text`: output or a drawing, for people.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from peer.cli import build_app
from relayswarm import site
from relayswarm.config import parse

Run = Callable[..., int]

ROOT = Path(__file__).parents[2]
LANGUAGES = {"bash", "console", "python", "text", "toml"}
ELSEWHERE = {"cd", "chown", "cp", "curl", "git", "kind", "mkdir", "mv", "openssl", "rm"}
ELSEWHERE |= {"sha256sum"}
"""Programs of others of which there is nothing to check."""


def test_every_block_says_what_it_is(block: Any) -> None:
    assert block.language in LANGUAGES, "give it a language, and a test in this file if it is new"


def test_no_code_stands_outside_a_fence(pages: Mapping[Path, str]) -> None:
    fence = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
    indented = re.compile(r"\n\n {4}\S")
    assert [path.name for path, text in pages.items() if indented.search(fence.sub("", text))] == []


# --- shell ------------------------------------------------------------------------------------


def make_targets() -> set[str]:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    return set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))


def parse_relayswarm(arguments: Sequence[str]) -> None:
    """Raises for an option or a value that the real command line does not take."""
    group: Any = typer.main.get_command(build_app(arguments[0]))
    command = group.commands[arguments[0]]
    rest = list(arguments[1:])
    while hasattr(command, "commands"):
        command = command.commands[rest.pop(0)]
    command.make_context(arguments[0], rest)


def check_make(arguments: Sequence[str]) -> None:
    targets = {word for word in arguments if "=" not in word}
    assert targets <= make_targets() | {"PYTHON"}, f"no such target: {targets - make_targets()}"


def check_python(arguments: Sequence[str]) -> None:
    """The script is there, and knows each option."""
    script, *rest = arguments
    text = (ROOT / script).read_text(encoding="utf-8")
    options = {word.partition("=")[0] for word in rest if word.startswith("--")}
    assert {option for option in options if f'"{option}"' not in text} == set(), script


def check_docker(arguments: Sequence[str]) -> None:
    """Files, targets of the Dockerfile and services of the compose file are there."""
    pairs = list(pairwise(arguments))
    files = [value for option, value in pairs if option == "-f"]
    assert [name for name in files if not (ROOT / name).exists()] == []
    dockerfile = (ROOT / "deploy" / "docker" / "Dockerfile").read_text(encoding="utf-8")
    targets = [value for option, value in pairs if option == "--target"]
    assert [name for name in targets if f" AS {name}\n" not in dockerfile] == []
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))["services"]
    scaled = [value.partition("=")[0] for option, value in pairs if option == "--scale"]
    assert [name for name in scaled if name not in services] == []
    if "logs" in arguments:
        named = arguments[arguments.index("logs") + 1 :]
        assert {name for name in named if not name.startswith("-")} <= set(services)


def check_kubectl(arguments: Sequence[str]) -> None:
    """Folders are there; what runs in a pod is a command of ours."""
    folders = [word for word in arguments if word.startswith("deploy/")]
    assert [name for name in folders if not (ROOT / name / "kustomization.yaml").exists()] == []
    if "--" in arguments:
        check(arguments[arguments.index("--") + 1 :])


def check(words: Sequence[str]) -> None:
    """Hold a command against what it speaks of. Raises for what is not so."""
    program, *arguments = words
    checks: dict[str, Callable[[Sequence[str]], None]] = {
        "relayswarm": parse_relayswarm,
        "make": check_make,
        "python": check_python,
        "docker": check_docker,
        "kubectl": check_kubectl,
        "sudo": check,
        "chrt": lambda rest: check(rest[2:]),  # chrt --rr 5 COMMAND
    }
    if program == ".":
        assert arguments == [".venv/bin/activate"]
    elif program not in ELSEWHERE:
        assert program in checks, f"nobody checks {program}"
        checks[program](arguments)


def test_every_command_in_a_shell_block_holds(bash_block: Any) -> None:
    for words in bash_block.commands():
        check(words)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("relayswarm status --jsn", "No such option: --jsn"),
        ("relayswarm topology --tree oak", "oak"),
        ("make tests", "no such target: {'tests'}"),
        ("python benchmarks/codec.py --fast", "benchmarks/codec.py"),
        ("python benchmarks/nothing.py", "nothing.py"),
        ("docker compose -f deploy/compose.cpu.yml up", "compose.cpu.yml"),
        ("docker compose up --scale peers=6", "peers"),
        ("kubectl apply -k deploy/kustomize/overlays/nowhere", "nowhere"),
        ("kubectl exec peer-0 -- relayswarm pull", "peer"),
        ("sudo chrt --rr 5 python benchmarks/nothing.py", "nothing.py"),
        ("wget http://example.org", "nobody checks wget"),
    ],
)
def test_a_command_that_does_not_hold_is_noticed(words: str, reason: str) -> None:
    with pytest.raises(Exception, match=re.escape(reason)):
        check(words.split())


def test_commands_that_need_nobody_else_run(shown_command: list[str], relayswarm: Run) -> None:
    """To their end; training with few steps."""
    short = ("--set", "steps=4", "--set", "evaluation.every=2", "--no-baseline")
    assert relayswarm(*shown_command, *(short if shown_command[0] == "simulate" else ())) == 0


# --- configuration and code -------------------------------------------------------------------


def test_toml_is_a_config_or_part_of_a_project(toml_block: Any, tmp_path: Path) -> None:
    tree = tomllib.loads(toml_block.text)
    if toml_block.text.startswith("# site.toml\n"):
        (tmp_path / "site.toml").write_text(toml_block.text)
        site.load(tmp_path / "site.toml")
    elif "project" not in tree:
        parse(toml_block.text)
    for group, entries in tree.get("project", {}).get("entry-points", {}).items():
        assert group in ("relayswarm.tasks", "relayswarm.algorithms")
        assert all(re.fullmatch(r"\w+(\.\w+)*:\w+", place) for place in entries.values())


def test_python_runs(
    pages: Mapping[Path, str],
    blocks: Callable[[str], list[tuple[Path, str]]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """In the order of each page, in one namespace. What they define is used by tests of their own:
    the README's task below in test_docs.py, CONTRIBUTING.md's algorithm in test_testing.py."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT / "examples" / "plain_gossip")
    # api.md is from docstrings, which read only; test_examples.py runs the program in own-loop.md
    excerpts = [page for page in pages if page.name in ("api.md", "own-loop.md")]
    for page in pages:
        namespace: dict[str, Any] = {"__name__": page.stem}
        for at, text in blocks("python"):
            if at == page:
                code = compile(text, str(page), "exec")
                exec(code if page not in excerpts else "", namespace)
    assert import_module("plain_gossip")
