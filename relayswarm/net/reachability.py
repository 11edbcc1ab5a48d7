"""Who can connect to a peer. Apart from what uses it, so that a command line shows its help at
once."""

from __future__ import annotations

from enum import StrEnum


class Reachability(StrEnum):
    """Of a peer, by the network that it is in."""

    BOTH = "both"  # it connects to others, and others to it
    DIAL_ONLY = "dial-only"  # it connects to others, nobody to it
