"""The pictures of docs/concepts.md are made, shown and no blank sheets."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def pictures() -> dict[str, Any]:
    found: dict[str, Any] = runpy.run_path(str(ROOT / "tools" / "generate_pictures.py"))
    return dict(found["PICTURES"])


def test_each_is_shown_and_committed_as_it_is_drawn(
    pictures: dict[str, Any], tmp_path: Path
) -> None:
    """Nearly: letters differ by a pixel from one version of matplotlib to another."""
    page = (ROOT / "docs" / "concepts.md").read_text(encoding="utf-8")
    for name, draw in pictures.items():
        assert f"](images/{name}.png)" in page
        draw().savefig(tmp_path / "drawn.png", dpi=130)
        with Image.open(tmp_path / "drawn.png") as new:
            drawn = np.asarray(new.convert("L"), dtype=float)
        with Image.open(ROOT / "docs" / "images" / f"{name}.png") as old:
            committed = np.asarray(old.convert("L"), dtype=float)
        assert drawn.shape == committed.shape, f"{name} is stale: make pictures"
        assert np.abs(drawn - committed).mean() < 0.5, f"{name} is stale: make pictures"
        assert drawn.std() > 10
