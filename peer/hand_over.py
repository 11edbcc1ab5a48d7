"""What a run leaves at each site: the model, and beside it `model.json`, which says what it is.

What belongs here: the content of that file, and reading it back.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from peer.training.files import unwritable
from relayswarm.errors import ConfigError
from relayswarm.schema import require_readable

MODEL, DESCRIPTION = "model.safetensors", "model.json"
SCHEMA_VERSION = 1
"""Of model.json; when to raise it: docs/stability.md."""


@dataclass(frozen=True, slots=True)
class HandOver:
    """A common model as one peer hands it over.

    `is_common`: whether it is the mean of the models of all `participants`, bit for bit the same at
    each; else it is this peer's own. `missing` are the peers that were in the swarm while this one
    was, and are not in that mean. `run_config` is the coordinator's text. `sites` says what each
    participant measured of the model, as `Evaluation.as_json` does; one that was not heard of is
    not there.
    """

    run_id: str
    config_sha256: str
    peer: str
    shard: int
    step: int
    model_sha256: str
    is_common: bool
    participants: Sequence[str]
    weights: Mapping[str, float]
    missing: Sequence[str]
    metrics: Mapping[str, float | None]
    swarm_metrics: Mapping[str, Any] | None
    best_swarm_metrics: Mapping[str, Any] | None
    versions: Mapping[str, str]
    run_config: str = field(repr=False)
    schema_version: int = SCHEMA_VERSION
    sites: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def digest_of(path: Path) -> str:
    """SHA-256 of a file, as `sha256sum` prints it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write(directory: Path, what: HandOver) -> None:
    """Write the description beside the model, in one piece. Raises ConfigError."""
    path = directory / DESCRIPTION
    temporary = directory / f"{DESCRIPTION}.partial"
    try:
        temporary.write_text(json.dumps(asdict(what), indent=2) + "\n", encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise unwritable("--state-dir", path, error) from error


def forget(directory: Path) -> None:
    """Another run's model takes the place of what was handed over here. Raises ConfigError."""
    path = directory / DESCRIPTION
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise unwritable("--state-dir", path, error) from error


def read(directory: Path) -> HandOver | None:
    """What was handed over here; None if nothing was. Raises ConfigError if the files do not belong
    together, or cannot be read."""
    path = directory / DESCRIPTION
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        require_readable(f"schema_version in {path}", content["schema_version"], SCHEMA_VERSION)
        known = {one.name for one in fields(HandOver)}  # a newer release may write more
        found = HandOver(**{name: content[name] for name in content if name in known})
        digest = digest_of(directory / MODEL)
    except (OSError, ValueError, LookupError, TypeError) as error:
        problem = f"cannot be read ({error})"
        raise ConfigError("--state-dir", str(path), problem, "remove it to train anew") from error
    if digest != found.model_sha256:
        problem = f"is of another model than the {MODEL} beside it"
        raise ConfigError("--state-dir", str(path), problem, "remove both to train anew")
    return found
