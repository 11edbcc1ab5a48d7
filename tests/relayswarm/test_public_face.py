"""What `import relayswarm` costs and offers."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import relayswarm

ROOT = Path(relayswarm.__file__).parents[1]


def loaded_after(statement: str) -> set[str]:
    code = f"{statement}; import sys; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "statement",
    ["import relayswarm", "import relayswarm; relayswarm.Task", "import relayswarm.config"],
)
def test_importing_loads_neither_torch_nor_numpy(statement: str) -> None:
    assert not loaded_after(statement) & {"torch", "numpy", "grpc"}


def test_every_public_name_resolves() -> None:
    assert {name for name in relayswarm.__all__ if getattr(relayswarm, name) is None} == set()
    assert set(relayswarm.__all__) <= set(dir(relayswarm))


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Tusk'"):
        _ = relayswarm.Tusk


def test_version_is_that_of_the_distribution() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert relayswarm.__version__ == project["version"]
