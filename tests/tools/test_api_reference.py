"""docs/api.md is what the docstrings say."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest

import relayswarm

TOOLS = Path(__file__).parents[2] / "tools"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(TOOLS)
        return importlib.import_module("generate_api_reference")


def test_the_committed_reference_is_fresh(tool: ModuleType) -> None:
    remedy = "stale: run make docs"
    assert tool.TARGET.read_text(encoding="utf-8") == tool.reference(), remedy


def test_what_is_offered_stands_in_it_with_its_text(tool: ModuleType) -> None:
    text = tool.reference()
    offered = [getattr(relayswarm, name) for name in relayswarm.__all__ if name != "__version__"]
    headings = [f"\n### {value.__module__}.{value.__name__}\n" for value in offered]
    assert [heading for heading in headings if heading not in text] == []
    assert "**`Task.loss(model: nn.Module, batch: Any) -> Tensor`**\n\nThe training loss" in text
    assert "```python\nclass Regression(Task):\n    name = " in text
    assert "TransportConfig" not in text  # the reference of the config has its sections
