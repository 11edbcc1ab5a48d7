"""The JSON files of a report: their names, and reading them back.

Importing this loads neither torch nor matplotlib.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import typer

from relayswarm import config as run_config
from relayswarm.config import RunConfig
from relayswarm.errors import ConfigError
from relayswarm.schema import require_readable

SCHEMA_VERSION = 1
"""Of all of them; when to raise it: docs/stability.md."""

REPORT, MANIFEST, HISTORY = "report.json", "manifest.json", "history.json"
MODEL, MODELS = "model.safetensors", "models"

ReportDir: TypeAlias = Annotated[
    Path, typer.Argument(metavar="REPORT_DIR", help="Folder of a report.")
]


def read(directory: Path, name: str) -> Any:
    """The content of one of them. Raises ConfigError if it is none, or of a newer release."""
    try:
        content = json.loads((directory / name).read_text(encoding="utf-8"))
        version = content["schema_version"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        problem = f"its {name} cannot be read ({error})"
        remedy = "give the folder of a report that `up` or `simulate` wrote"
        raise ConfigError("REPORT_DIR", str(directory), problem, remedy) from error
    require_readable(f"schema_version in {directory / name}", version, SCHEMA_VERSION)
    return content


def config_of(manifest: Mapping[str, Any], report: Path) -> RunConfig:
    """The config of the run. Raises ConfigError if this release cannot read it."""
    try:
        return run_config.validate(manifest["config"])
    except (KeyError, ConfigError) as error:
        problem = f"its manifest holds no config that this release can read ({error})"
        remedy = f"use relayswarm {manifest.get('versions', {}).get('relayswarm', 'of its time')}"
        raise ConfigError("REPORT_DIR", str(report), problem, remedy) from error
