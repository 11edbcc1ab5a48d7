"""How models travel in a run: from the run config to the codec's values."""

from __future__ import annotations

from peer.codec import Format
from peer.codec.edges import LatticeSetting
from relayswarm.config import RunConfig

LATTICE = "lattice"


def plain_format(config: RunConfig) -> Format | None:
    """Of messages that are not on the lattice; None: the model's own."""
    name = config.transport.wire_format
    return Format(name) if name and name != LATTICE else None


def lattice_setting(config: RunConfig) -> LatticeSetting | None:
    """None in a run whose messages all go in full precision."""
    transport = config.transport
    if transport.wire_format != LATTICE:
        return None
    return LatticeSetting(transport.lattice_bits, transport.lattice_rotate)
