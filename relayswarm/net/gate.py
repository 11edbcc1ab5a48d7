"""Who a caller is, by its certificate and its token: asked before anything else of a call."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from typing import Any, NoReturn, TypeAlias, cast

import grpc

from relayswarm.net.sparing import shortened
from relayswarm.net.tokens import TokenFile


class Denial(Enum):
    """Why a call was turned away at the door; a label of a counter."""

    TOKEN = "token"  # none, or none that is valid
    IDENTITY = "identity"  # in the name of somebody else than its certificate's
    MALFORMED = "malformed"  # no message of this protocol
    METHOD = "method"  # no such call
    RUN = "run"  # about another run
    STRANGER = "stranger"  # it collects, but is no neighbour that can only dial out
    FORGOTTEN = "forgotten"  # a snapshot that is not kept (any more)
    LAW = "law"  # the site's own law forbids it
    BUSY = "busy"  # too many calls of this caller, or too many readers
    STALLED = "stalled"  # nothing came for too long, or too slowly


OnDenied: TypeAlias = Callable[[Denial, str], None]
"""Told of each denial, with a text that names what was wrong."""


def certified_names(context: grpc.ServicerContext) -> frozenset[str]:
    """The names in the caller's certificate: its common name, or if it has none the alternative
    names. Empty if it showed no certificate, which only happens where none is asked for."""
    shown: Mapping[str, Iterable[bytes]] = cast(Any, context.auth_context())
    common = [name for name in shown.get("x509_common_name", ()) if name]
    names = common or shown.get("x509_subject_alternative_name", ())
    return frozenset(name.decode("utf-8", "replace") for name in names)


class Gate:
    """Lets callers through who speak for themselves and, where one is needed, show a token."""

    def __init__(self, tokens: TokenFile | None, on_denied: OnDenied) -> None:
        self._tokens = tokens
        self._on_denied = on_denied

    def check(self, context: grpc.ServicerContext) -> None:
        """Abort with UNAUTHENTICATED a call without a valid token."""
        if self._tokens and not self._tokens.accepts(context.invocation_metadata() or ()):
            text = "no valid token; give --token-file with one that this server's holds"
            self._deny(context, grpc.StatusCode.UNAUTHENTICATED, Denial.TOKEN, text)

    def speaks_for(self, context: grpc.ServicerContext, peer_id: str) -> None:
        """Abort with PERMISSION_DENIED a call in another's name."""
        names = certified_names(context)
        if names and peer_id not in names:
            own = " or ".join(sorted(names))
            text = f"peer_id = {peer_id!r}: the certificate is that of {own}; use its own"
            self._deny(context, grpc.StatusCode.PERMISSION_DENIED, Denial.IDENTITY, text)

    def name_of(self, context: grpc.ServicerContext) -> str:
        """Who calls, by its certificate; '' if that does not say it, or not without doubt."""
        names = certified_names(context)
        return next(iter(names)) if len(names) == 1 else ""

    def _deny(
        self, context: grpc.ServicerContext, code: grpc.StatusCode, denial: Denial, text: str
    ) -> NoReturn:
        self._on_denied(denial, text)
        context.abort(code, shortened(text))
        raise AssertionError("abort raises")
