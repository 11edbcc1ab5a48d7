"""The worked examples of CONTRIBUTING.md: each does what the page says of it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2

from relayswarm.testing import check_algorithm

Blocks = Callable[[str], list[tuple[Path, str]]]


@pytest.fixture
def names(blocks: Blocks, root: Path, monkeypatch: pytest.MonkeyPatch) -> Mapping[str, Any]:
    """What the page's Python defines."""
    monkeypatch.syspath_prepend(root / "examples" / "plain_gossip")
    defined: dict[str, Any] = {"__name__": "contributing"}
    for page, text in blocks("python"):
        if page.name == "CONTRIBUTING.md":
            exec(compile(text, page.name, "exec"), defined)
    return defined


# --- an algorithm: the rest is in tests/relayswarm/test_testing.py ------------------------------


def test_an_algorithm_that_keeps_what_it_needs_goes_on(names: Mapping[str, Any]) -> None:
    check_algorithm(names["Cooling"], trial="all arrives")


def test_one_that_does_not_is_told(names: Mapping[str, Any]) -> None:
    forgetful = type("Forgetful", (names["Cooling"],), {"restore": lambda *_: None})
    with pytest.raises(AssertionError, match="resume: stopped before step"):
        check_algorithm(forgetful, trial="all arrives")


# --- a task -------------------------------------------------------------------------------------


def test_the_tasks_tests_pass(names: Mapping[str, Any]) -> None:
    tests = [name for name in names if name.startswith("test_stripes")]
    assert len(tests) == 2
    for name in tests:
        names[name]()


# --- a wire format ------------------------------------------------------------------------------

ELEMENTS = 21_546  # of the model of `digits`
CODE = ("relayswarm", "peer", "coordinator", "proto", "tests/peer/codec", "tests/conftest.py")


@pytest.fixture
def patched(root: Path, tmp_path: Path) -> Path:
    """A copy of the code with the format in it, and `make proto` done."""
    goal = tmp_path / "copy"
    for name in (*CODE, "pyproject.toml"):
        source, place = root / name, goal / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, place, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, place)
    patch = root / "examples" / "float8.patch"
    subprocess.run(["git", "apply", "--unsafe-paths", str(patch)], cwd=goal, check=True)
    generate(goal)
    return goal


def generate(folder: Path) -> None:
    """What `make proto` would: the generator needs an environment of its own, but all that it puts
    into the code is the compiled contract, which buf makes too."""
    image = folder / "image.binpb"
    buf = Path(sys.executable).with_name("buf")
    options = ("--as-file-descriptor-set", "--exclude-source-info", "-o", str(image))
    subprocess.run([buf, "build", str(folder / "proto"), *options], check=True)
    files = descriptor_pb2.FileDescriptorSet.FromString(image.read_bytes()).file
    (contract,) = (one for one in files if one.name == "relayswarm/peer/v1/peer.proto")
    compiled = f"AddSerializedFile({contract.SerializeToString()!r})"
    code = folder / "relayswarm" / "peer" / "v1" / "peer_pb2.py"
    text = code.read_text(encoding="utf-8")
    code.write_text(re.sub(r"AddSerializedFile\(b'.*'\)", lambda _: compiled, text))


def python(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python with the copy's code in place of ours."""
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONSAFEPATH": "1"}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.mark.timeout(300)  # a swarm of processes that import torch, after a suite of properties
def test_the_wire_format_works_in_a_copy(patched: Path) -> None:
    """Its tests pass, and two peers' messages are as long as eight bits an element make them."""
    tests = python(patched, "-m", "pytest", "-q", "tests/peer/codec/test_formats.py")
    assert tests.returncode == 0, tests.stdout
    task = ("--task", "digits", "--graph", "chain", "--peers", "2", "--steps", "5")
    options = ("--no-baseline", "--report", "made", "--set", "transport.wire_format=float8")
    ended = python(patched, "-m", "peer.cli", "up", *task, *options)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    for peer in json.loads((patched / "made" / "report.json").read_text())["peers"]:
        sent = peer["messages_sent"]
        tries = sent + peer["messages_retried"]  # one that comes before its epoch goes again
        assert ELEMENTS * sent < peer["bytes_sent"] < 1.1 * ELEMENTS * tries


def test_the_page_names_the_files_that_the_format_touches(root: Path) -> None:
    patch = (root / "examples" / "float8.patch").read_text(encoding="utf-8")
    page = (root / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = page.partition("## Adding a wire format")[2].partition("\n## ")[0]
    touched = re.findall(r"^\+\+\+ b/(.+)$", patch, re.MULTILINE)
    assert len(touched) == 6
    assert [name for name in touched if f"]({name})" not in section] == []
