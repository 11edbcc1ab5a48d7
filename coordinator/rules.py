"""From the run config to the rules of membership, for whoever runs it."""

from __future__ import annotations

from coordinator.members import Rules
from coordinator.views import why_no_dial_only
from relayswarm.config import RunConfig

LEAST_ROOM = 512
"""Members that any run has room for; a large one, for twice as many as it needs."""


def rules_of(config: RunConfig) -> Rules:
    """What this run asks of its members."""
    return Rules(
        run_id=config.run_id,
        needed=config.peers,
        shards=config.shards,
        lease_s=config.coordinator.lease_s,
        start_timeout_s=config.coordinator.start_timeout_s,
        max_members=max(LEAST_ROOM, 2 * config.peers),
        steps=max(config.steps, len(config.algorithm.options.get("script", ()))),
        wire_format=config.transport.wire_format,
        no_dial_only=why_no_dial_only(config),
        deterministic=config.deterministic,
        weights=config.data.weight_range,
        common_model=config.stop.common_model,
    )
