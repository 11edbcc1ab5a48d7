"""Whom a server with TLS talks to; apart, so that the command line need not load gRPC for it."""

from __future__ import annotations

from enum import Enum


class Clients(Enum):
    """Whom a server with TLS talks to."""

    REQUIRED = "required"  # to who shows a certificate of the CA (mTLS)
    ANY = "any"  # to everyone: encrypted, but a caller may give any name
