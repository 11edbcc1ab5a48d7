"""An algorithm from outside, checked the way its author would."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path
from typing import Any

import pytest

from peer.algorithms.core import OptionError
from peer.config import build_algorithm, find_algorithm
from relayswarm.config import AlgorithmConfig, RunConfig
from relayswarm.testing import check_algorithm

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "plain_gossip"


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The class of the example, as if its package were installed."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    information = tmp_path / "plain_gossip-1.0.dist-info"
    information.mkdir()
    name, version = project["name"], project["version"]
    (information / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    )
    lines = []
    for group, entries in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{key} = {value}" for key, value in entries.items())]
    (information / "entry_points.txt").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.syspath_prepend(EXAMPLE)
    return importlib.import_module("plain_gossip").PlainGossip


def test_the_example_is_found_by_its_name(example: Any) -> None:
    assert find_algorithm("plain-gossip") == (example, example.Options)
    chosen = AlgorithmConfig(name="plain-gossip", options={"self_weight": 0.25})
    assert build_algorithm(RunConfig(algorithm=chosen)).name == "plain-gossip"


@pytest.mark.timeout(300)  # it starts four processes that import torch
def test_the_example_keeps_its_promises(example: Any) -> None:
    path, inherited = list(sys.path), os.environ.get("PYTHONPATH")
    check_algorithm(example, {"self_weight": 0.25})
    assert (sys.path, os.environ.get("PYTHONPATH")) == (path, inherited)


def test_its_options_are_used(example: Any) -> None:
    with pytest.raises(OptionError, match="self_weight = 2: out of range") as caught:
        check_algorithm(example, {"self_weight": 2})
    assert "check_algorithm(PlainGossip, {'self_weight': 2}, peers=3" in caught.value.__notes__[0]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_method_that_depends_on_its_process_is_found(
    example: Any,  # noqa: ARG001
    tmp_path: Path,
) -> None:
    (tmp_path / "fickle.py").write_text(
        "import os\n"
        "from plain_gossip import PlainGossip\n\n"
        "class Fickle(PlainGossip):\n"
        "    def lr_scale(self, view):\n"
        "        return 1 + os.getpid() / 1e8\n"
    )
    fickle = importlib.import_module("fickle")
    with pytest.raises(AssertionError, match=r"daemons: .* of peer-0 differs from the") as caught:
        check_algorithm(fickle.Fickle, peers=2, trial="daemons")
    assert caught.value.__notes__[0].endswith("peers=2, trial='daemons')")


def test_contributing_shows_the_example_as_it_is() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    shown = re.findall(r"```python\ndef combine.*?\n(.*?)```", text, re.DOTALL)
    source = (EXAMPLE / "plain_gossip.py").read_text(encoding="utf-8")
    assert len(shown) == 1
    assert textwrap.indent(shown[0], "    ") in source
    (entry,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    assert entry in (EXAMPLE / "pyproject.toml").read_text(encoding="utf-8")


def test_importing_it_is_light() -> None:
    code = "import sys, relayswarm.testing; sys.exit(bool({'torch', 'peer'} & set(sys.modules)))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0
