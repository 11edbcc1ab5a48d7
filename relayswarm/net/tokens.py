"""Join tokens: secrets in a file, one a line, that can be rotated while processes run.

Whoever is called takes any token of its file, whoever calls shows the first of its own. The file is
read again when it has changed: add the new token there, let the callers have it, take the old away.
"""

from __future__ import annotations

import logging
import os
from hmac import compare_digest
from pathlib import Path
from typing import TypeAlias

from relayswarm.errors import ConfigError

log = logging.getLogger("relayswarm.net")

HEADER = "authorization"
SCHEME = "Bearer "
SHORTEST = 16  # characters

Metadata: TypeAlias = tuple[tuple[str, str | bytes], ...]


class TokenFile:
    """The tokens of a file. Lines that begin with `#` and empty ones are passed over."""

    def __init__(self, path: Path) -> None:
        """Raises ConfigError if there are no usable tokens in it."""
        self._path = path
        self._seen = self._stamp()
        self._tokens = self._read()

    def accepts(self, metadata: Metadata) -> bool:
        """Whether a call's metadata show a token. Takes as long for a wrong one as for a right."""
        shown = next((value for key, value in metadata if key == HEADER), "")
        shown = shown if isinstance(shown, bytes) else shown.encode()
        matches = [compare_digest(shown, (SCHEME + t).encode()) for t in self._current()]
        return any(matches)

    def metadata(self) -> Metadata:
        """What a caller sends along."""
        return ((HEADER, SCHEME + self._current()[0]),)

    def _current(self) -> tuple[str, ...]:
        """Its tokens of now. One that cannot be used, perhaps half written, changes nothing."""
        try:
            stamp = self._stamp()
            if stamp != self._seen:
                self._seen, self._tokens = stamp, self._read()
                log.info("%s has changed: it holds %d tokens", self._path, len(self._tokens))
        except ConfigError as error:
            self._seen = None
            log.warning("going on with the tokens of before: %s", error)
        return self._tokens

    def _stamp(self) -> tuple[int, int, int] | None:
        try:
            status = os.stat(self._path)
        except OSError as error:
            raise self._unusable(f"cannot be read ({error.strerror})") from error
        return status.st_mtime_ns, status.st_size, status.st_ino

    def _read(self) -> tuple[str, ...]:
        try:
            lines = self._path.read_text("ascii").splitlines()
        except OSError as error:
            raise self._unusable(f"cannot be read ({error.strerror})") from error
        except UnicodeDecodeError as error:
            raise self._unusable("holds other characters than ASCII") from error
        tokens = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        if not tokens:
            raise self._unusable("holds no token")
        if any(len(token) < SHORTEST or not token.isprintable() for token in tokens):
            raise self._unusable(f"holds a token of fewer than {SHORTEST} characters, or no text")
        return tuple(tokens)

    def _unusable(self, problem: str) -> ConfigError:
        remedy = "write one token a line; `openssl rand -hex 32` makes one"
        return ConfigError("--token-file", str(self._path), problem, remedy)
