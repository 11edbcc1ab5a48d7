"""`make proto-lint` finds what would break programs that speak the last release's contract."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools" / "check_breaking.py"
BUF = Path(sys.executable).with_name("buf")
Check = Callable[[], subprocess.CompletedProcess[str]]

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="there is no git")


def git(folder: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "tag.gpgSign=no")
    options = ("-c", "commit.gpgSign=no", "-c", "init.defaultBranch=main")
    subprocess.run(("git", *identity, *options, *arguments), cwd=folder, check=True)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """The contract in a repository of its own, as version 0.1.0."""
    shutil.copytree(ROOT / "proto", tmp_path / "proto")
    shutil.copy(ROOT / "buf.yaml", tmp_path)
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "0.1.0"\n')
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "Begin")
    return tmp_path


@pytest.fixture
def check(repository: Path) -> Check:
    def run() -> subprocess.CompletedProcess[str]:
        command = (sys.executable, TOOL, "--repository", repository, "--buf", BUF)
        home = {"XDG_CACHE_HOME": str(repository / ".cache")}
        return subprocess.run(command, capture_output=True, text=True, env=os.environ | home)

    return run


def edit(repository: Path, pattern: str, replacement: str) -> None:
    path = repository / "proto" / "relayswarm" / "peer" / "v1" / "peer.proto"
    text, times = re.subn(pattern, replacement, path.read_text(), count=1, flags=re.MULTILINE)
    assert times == 1
    path.write_text(text)


def renumber(repository: Path) -> None:
    edit(repository, r"^  string run_id = 2;$", "  string run_id = 29;")


def test_without_a_tag_it_says_that_there_is_nothing_to_compare_with(check: Check) -> None:
    done = check()
    assert done.returncode == 0
    assert "no release is tagged yet" in done.stdout


def test_what_is_added_is_allowed(repository: Path, check: Check) -> None:
    git(repository, "tag", "v0.1.0")
    edit(repository, r"^message Epoch \{$", "message Epoch {\n  // New.\n  string note = 99;")
    done = check()
    assert (done.returncode, done.stderr) == (0, "")
    assert "nothing that v0.1.0 speaks was broken" in done.stdout


def test_a_breaking_change_is_found_where_it_stands(repository: Path, check: Check) -> None:
    git(repository, "tag", "v0.1.0")
    renumber(repository)
    done = check()
    assert done.returncode == 1
    assert re.search(r"peer\.proto:\d+:\d+:.*\"2\".*run_id", done.stderr)
    assert "version 0.1.0 must understand v0.1.0" in done.stderr


@pytest.mark.parametrize(
    ("tag", "version", "code"),
    [
        ("v0.1.0", "0.1.1", 1),
        ("v0.1.0", "0.2.0", 0),
        ("v1.1.0", "1.2.0", 1),
        ("v1.1.0", "2.0.0", 0),
    ],
)
def test_a_version_that_may_break_is_told_and_let_through(
    repository: Path, check: Check, tag: str, version: str, code: int
) -> None:
    git(repository, "tag", tag)
    renumber(repository)
    (repository / "pyproject.toml").write_text(f'[project]\nversion = "{version}"\n')
    done = check()
    assert done.returncode == code
    assert "run_id" in done.stderr
