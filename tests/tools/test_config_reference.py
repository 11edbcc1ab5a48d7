"""docs/config.md is what the schema says, and `--check` notices when it is not."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from peer.algorithms import ALGORITHMS
from relayswarm.config import RunConfig

TOOL = Path(__file__).parents[2] / "tools" / "generate_config_reference.py"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate_config_reference", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_committed_reference_is_fresh(tool: ModuleType) -> None:
    remedy = "stale: run make docs"
    assert (tool.DOCS / "config.md").read_text(encoding="utf-8") == tool.reference(), remedy
    assert (tool.DOCS / "site.md").read_text(encoding="utf-8") == tool.site_reference(), remedy


def test_every_key_stands_under_its_section_with_default_and_text(tool: ModuleType) -> None:
    text = tool.reference()
    assert "| `deadline_s` | number, > 0 | `30.0` | Patience with" in text
    assert text.index("## `[transport]`") < text.index("`deadline_s`")
    assert "| `group` | list of strings | required |" in text
    assert "| `alpha` | number, > 0 | unset |" in text
    for name in RunConfig.model_fields:
        assert f"`{name}`" in text or f"`[{name}]`" in text


def test_it_names_every_algorithm(tool: ModuleType) -> None:
    text = tool.reference()
    assert [name for name in ALGORITHMS if f"`{name}`" not in text] == []


def check(tool: ModuleType, monkeypatch: pytest.MonkeyPatch, target: Path) -> int:
    monkeypatch.setattr(tool, "DOCS", target.parent)
    monkeypatch.setattr(sys, "argv", ["generate_config_reference.py", "--check"])
    code: int = tool.main()
    return code


def test_check_tells_fresh_from_stale(
    tool: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "site.md").write_text(tool.site_reference(), encoding="utf-8")
    target = tmp_path / "config.md"
    target.write_text(tool.reference(), encoding="utf-8")
    assert check(tool, monkeypatch, target) == 0
    target.write_text(tool.reference().replace("30.0", "31.0"), encoding="utf-8")
    assert check(tool, monkeypatch, target) == 1
