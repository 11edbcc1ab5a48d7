"""What is public stays as its snapshot has it, until somebody changes both on purpose."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
KINDS = ("python", "commands", "config", "report", "events", "metrics", "exit-codes", "proto")
RULE = """\
{kind}: the public interface is not what tests/stability/snapshots/{kind}.txt says any more.

{changes}

- What went or changed (-) breaks somebody's program. docs/stability.md asks for: a release in which
  the old way still works and warns; then a new minor version before 1.0.0, a new major one after.
- What only came (+) breaks nobody: a new minor version.
If it is meant: `make snapshots`, commit the file with the change, and tell it in CHANGELOG.md.
"""


@pytest.fixture(scope="module")
def interface() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "tools")
        return importlib.import_module("public_interface")


def explain(kind: str, before: Sequence[str], now: Sequence[str]) -> str:
    changes = [line for line in difflib.ndiff(before, now) if line[:1] in "+-"]
    return RULE.format(kind=kind, changes="\n".join(f"    {line}" for line in changes))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_public_is_what_was_promised(interface: ModuleType, kind: str) -> None:
    before, now = interface.committed(kind), interface.listed(kind)
    if before != now:
        pytest.fail(explain(kind, before, now), pytrace=False)


def test_every_kind_has_a_snapshot_and_a_place_in_the_page(interface: ModuleType) -> None:
    assert set(interface.KINDS) == set(KINDS)
    assert {path.stem for path in interface.SNAPSHOTS.iterdir()} == set(KINDS)
    page = (ROOT / "docs" / "stability.md").read_text(encoding="utf-8")
    assert [kind for kind in KINDS if f"snapshots/{kind}.txt)" not in page] == []


def test_a_change_is_told_with_its_lines_and_the_rule() -> None:
    text = explain("exit-codes", ["0 DONE", "2 USAGE"], ["0 DONE", "3 USAGE"])
    assert "    - 2 USAGE\n" in text
    assert "    + 3 USAGE\n" in text
    assert "0 DONE" not in text
    assert "make snapshots" in text


def test_every_kind_lists_what_is_known_to_be_public(interface: ModuleType) -> None:
    """So that a listing that comes back empty, or blind to some part, is noticed."""
    known = {
        "python": "relayswarm.task.Site.shards: int",
        "commands": "relayswarm peer --stay",
        "config": "[faults]: drop number, >= 0, <= 1, default 0.0",
        "report": "report.json: peers[].waited_seconds: number",
        "events": "up: finished report",
        "metrics": "peer relayswarm_exchanges_total counter by role, outcome",
        "exit-codes": "3 COULD_NOT_JOIN",
        "proto": "relayswarm.peer.v1.MessageHeader.run_id = 2: string",
    }
    assert [kind for kind in KINDS if known[kind] not in interface.committed(kind)] == []
