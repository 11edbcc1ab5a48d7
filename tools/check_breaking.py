"""Would programs that speak the wire contract of the last release still be understood?

Compares proto/ with that of the newest tag `v*` before this commit, by `buf breaking`. What breaks
them is refused, unless the version has risen as docs/stability.md asks for: by a minor version
before 1.0.0, by a major one after. Without any such tag there is nothing to compare with, and that
is said.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from io import BytesIO
from pathlib import Path


def last_tag(repository: Path) -> str | None:
    """The newest tag `v*` that this commit follows; None if there is none, or no git."""
    command = ("git", "describe", "--tags", "--abbrev=0", "--match", "v[0-9]*")
    if shutil.which("git") is None:
        return None
    found = subprocess.run(command, cwd=repository, capture_output=True, text=True)
    return found.stdout.strip() if found.returncode == 0 else None


def changes_since(repository: Path, tag: str, buf: str) -> str:
    """What buf finds broken since the tag, a line each. Raises CalledProcessError."""
    archive = subprocess.run(
        ("git", "archive", tag, "proto", "buf.yaml"),
        cwd=repository,
        capture_output=True,
        check=True,
    )
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=BytesIO(archive.stdout)) as tar:
            tar.extractall(folder, filter="data")
        command = (buf, "breaking", "--against", folder)
        done = subprocess.run(command, cwd=repository, capture_output=True, text=True)
    if done.returncode not in (0, 100):  # 100: it found something
        raise subprocess.CalledProcessError(done.returncode, command, stderr=done.stderr)
    return done.stdout.strip()


def may_break(version: str, tag: str) -> bool:
    """Whether the version has risen since the tag by as much as a breaking change asks for."""
    now, before = (_numbers(text) for text in (version, tag.removeprefix("v")))
    decisive = 1 if before[0] else 2
    return now[:decisive] > before[:decisive]


def _numbers(version: str) -> tuple[int, int]:
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


def main() -> int:
    """Return 0, or 1 when the contract is broken and the version does not allow it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--repository", type=Path, default=Path(__file__).resolve().parents[1])
    parser.add_argument("--buf", default="buf", help="the command")
    given = parser.parse_args()
    tag = last_tag(given.repository)
    if tag is None:
        print("buf breaking: no release is tagged yet (v*), so there is nothing to compare with")
        return 0
    found = changes_since(given.repository, tag, given.buf)
    if not found:
        print(f"buf breaking: nothing that {tag} speaks was broken")
        return 0
    project = tomllib.loads((given.repository / "pyproject.toml").read_text(encoding="utf-8"))
    version = project["project"]["version"]
    print(found, file=sys.stderr)
    if may_break(version, tag):
        print(f"buf breaking: the above differs from {tag}; version {version} allows it")
        return 0
    remedy = "keep the old fields and methods, or raise the version (docs/stability.md)"
    print(f"buf breaking: version {version} must understand {tag}: {remedy}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
