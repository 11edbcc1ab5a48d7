"""How models travel in a run: from the run config to the codec's values."""

from __future__ import annotations

from peer.codec import Format
from peer.codec.edges import LatticeSetting
from peer.codec.quantizer import Quantizer
from relayswarm.config import RunConfig

LATTICE = "lattice"


def plain_format(config: RunConfig) -> Format | None:
    """Of messages that are not on the lattice; None: the model's own."""
    name = config.transport.wire_format
    return Format(name) if name and name != LATTICE else None


def lattice_setting(config: RunConfig) -> LatticeSetting | None:
    """None in a run whose messages all go in full precision."""
    return _setting(config) if config.transport.wire_format == LATTICE else None


def quantizer_setting(config: RunConfig) -> LatticeSetting | None:
    """Of the copies that pairs exchange; None where they go as they are."""
    return _setting(config) if config.algorithm.quantize == LATTICE else None


def quantizer(config: RunConfig) -> Quantizer | None:
    """Of one peer, if the run has any."""
    setting = quantizer_setting(config)
    return Quantizer(setting, config.seed) if setting else None


def _setting(config: RunConfig) -> LatticeSetting:
    return LatticeSetting(config.transport.lattice_bits, config.transport.lattice_rotate)
