"""What a model's file says of itself, beside the tensors: safetensors metadata, all of it text.

relayswarm_version   of the release that trained it
run_id  algorithm    of the run config
config_sha256        of the run config, as JSON with sorted keys and without spaces
model_fingerprint    names, shapes and types of the model's tensors (peer.training.flat)
model                whose it is: a peer's id, or `average`
part                 `shared` where the file has no more of the model than what peers share
step                 steps done; of an average the most of any peer in it
participants         JSON list of the peers in the average, or of those that finished beside it
metrics              JSON object of what it was measured to be, if it was
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import relayswarm

AVERAGE = "average"
PART, SHARED = "part", "shared"


def model_metadata(
    config: Mapping[str, Any],
    model: str,
    step: int,
    participants: Sequence[str],
    metrics: Mapping[str, float | None],
    fingerprint: str | None,
    version: str = relayswarm.__version__,
) -> dict[str, str]:
    """Metadata of one model; `config` is a whole run config as JSON values, `fingerprint` as
    `fingerprint_text` gives it, None where it is not known."""
    known = {} if fingerprint is None else {"model_fingerprint": fingerprint}
    return {
        "format": "pt",
        "relayswarm_version": version,
        "run_id": config["run_id"],
        "algorithm": config["algorithm"]["name"],
        "config_sha256": config_sha256(config),
        **known,
        "model": model,
        "step": str(step),
        "participants": json.dumps(list(participants)),
        "metrics": json.dumps(dict(metrics)),
    }


def metadata_of_report(
    report: Mapping[str, Any], manifest: Mapping[str, Any], model: str
) -> dict[str, str]:
    """That of `average` or of a peer of a report, from its two files."""
    peers = report["peers"]
    own = peers if model == AVERAGE else [peer for peer in peers if peer["id"] == model]
    metrics = (report["consensus_model"] or {}) if model == AVERAGE else own[0]["metrics"]
    return model_metadata(
        manifest["config"],
        model,
        max(peer["steps"] for peer in own),
        [peer["id"] for peer in peers],
        metrics,
        manifest.get("model_fingerprint"),
        manifest["versions"]["relayswarm"],
    )


def config_sha256(config: Mapping[str, Any]) -> str:
    """Equal for equal run configs, wherever their values came from."""
    text = json.dumps(config, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def fingerprint_text(fingerprint: int) -> str:
    """As messages of coordinator and peers have it."""
    return f"{fingerprint:#018x}"
