"""The audit of a site: one line of JSON for each thing that leaves, is agreed to, or is refused.

Each line holds the digest of the one before and its own, so that a changed, removed, inserted or
reordered line is found (`verify`). Whoever can write the file can also write all of it anew: note
the last digest elsewhere now and then, and `verify` says whether it is still in the chain.

A line is handed to the operating system in one write before the last byte of its payload is handed
to the network. It outlives the process. There is no fsync before the end, which a sender would have
to wait for: of a machine that loses power what its system had not written yet may be missing. A
line that a crash has torn stays where it is, and the next one says what it is.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from peer.transport.contract import Digest, Parcel
from relayswarm.errors import AuditError, ConfigError

SCHEMA_VERSION = 1
"""Of the records; when to raise it: docs/stability.md."""

FIRST = "0" * 64
"""What the first record holds in the place of a digest."""

LONGEST = 1 << 16
"""Bytes of a line: more than any record has, whatever others call themselves."""

LONGEST_TEXT = 500
"""Characters of a field. In JSON each takes 12 bytes at most, and a record has at most ten fields
that somebody else may have chosen: so lines are shorter than `LONGEST`."""

REFUSALS_EVERY_S = 1.0
"""Of each reason one record in so many seconds, with the number of all since the last: whoever is
refused cannot fill the disk."""

TORN = "torn"
"""The event of a record behind a line that a crash has torn."""

_OWN = b',"digest":"'


class Audit:
    """Writes the records of one peer. Thread-safe. `failed` hears of it, once, when that is no
    longer possible; from then on nothing is recorded, and nothing may leave.

    Raises ConfigError if the file cannot be written, is another process's, or ends in what is no
    record, and if there is no package for the digest.
    """

    def __init__(
        self,
        path: Path,
        digest: str | None = None,
        *,
        failed: Callable[[AuditError], None] = lambda _: None,
        recorded: Callable[[], None] = lambda: None,
    ) -> None:
        self.path = path
        self.failed, self.recorded = failed, recorded
        self.digest, self._make_digest = _digests(digest)
        self._guard = threading.Lock()
        self._refusals: dict[str, tuple[float, int]] = {}  # by reason: since when, how many more
        self._is_broken = False
        self._file = _open(path)
        self._size = os.fstat(self._file).st_size
        self._second = (0, "")  # of the last record, and in words
        self._number, self._previous = -1, FIRST
        self._take_up()

    # --- what is recorded ---------------------------------------------------------------------

    def new_digest(self) -> Digest:
        """For the bytes of a payload."""
        return self._make_digest()

    def leaving(self, parcel: Parcel, digest: str | None) -> bool:
        """A payload leaves (`digest` of all that does: its last byte is next), or is about to
        (None). Whether that is recorded: if not, it must stay here."""
        way = _way(parcel.receiver, parcel.known_by, parcel.kind, parcel.epoch)
        fields = (
            f'{way},"step":{parcel.step},"attempt":{parcel.attempt},'
            f'"offset":{parcel.offset},"bytes":{parcel.bytes}'
        )
        if digest is None:
            return self._record("begun", fields)
        payload = f',"algorithm":"{self.digest}","payload":"{digest}"'
        return self._record("sent", fields + payload)

    def accepted(self, run_id: str, config: str, task: Mapping[str, str]) -> None:
        """This peer takes part in a run, of which that is the config. Raises AuditError."""
        digest = hashlib.sha256(config.encode()).hexdigest()
        fields = {"run_id": run_id, "config_sha256": digest, **task}
        if not self._record("accepted", _json(fields)):
            raise AuditError(_told(self.path, "see the log"))

    def refused(self, reason: str, text: str) -> None:
        """Something was not done, since the law or the rules of the swarm forbid it."""
        now = time.monotonic()
        with self._guard:
            since, more = self._refusals.get(reason, (-REFUSALS_EVERY_S, 0))
            if now - since < REFUSALS_EVERY_S:
                self._refusals[reason] = since, more + 1
                return
            self._refusals[reason] = now, 0
        self._record("refused", _json({"reason": reason, "text": text, "count": more + 1}))

    def close(self) -> None:
        """Nothing more is recorded. On the disk when this returns."""
        for reason, (_, more) in self._refusals.items():
            if more:
                self._record("refused", _json({"reason": reason, "text": "", "count": more}))
        with self._guard:
            self._is_broken = True
            if self._file >= 0:
                with suppress(OSError):  # a disk that is full or gone has been told of
                    os.fsync(self._file)
                os.close(self._file)
            self._file = -1

    @property
    def head(self) -> str:
        """The digest of the last record."""
        return self._previous

    # --- the chain ----------------------------------------------------------------------------

    def _record(self, event: str, fields: str, before: bytes = b"") -> bool:
        """`fields` are JSON without braces. A sender's thread does this for every message, in the
        middle of a step: all that is the same for many of them is made once."""
        with self._guard:
            if self._is_broken:
                return False
            body = (
                f'{{"schema_version":{SCHEMA_VERSION},"number":{self._number + 1},'
                f'"time":"{self._clock()}","event":"{event}",{fields},'
                f'"previous":"{self._previous}"'
            ).encode()
            digest = _digest_of(body + b"}")
            problem = self._write(before + body + _OWN + digest.encode() + b'"}\n')
            if problem is None:
                self._number, self._previous = self._number + 1, digest
            self._is_broken = problem is not None
        if problem is not None:
            self.failed(AuditError(_told(self.path, problem)))
            return False
        self.recorded()
        return True

    def _clock(self) -> str:
        """The time, as `datetime.isoformat`."""
        second, rest = divmod(time.time_ns(), 1_000_000_000)
        if second != self._second[0]:
            self._second = second, datetime.fromtimestamp(second, UTC).isoformat()[:-6]
        return f"{self._second[1]}.{rest // 1000:06d}+00:00"

    def _write(self, line: bytes) -> str | None:
        """Returns what went wrong; then nothing of the line is in the file, if possible."""
        try:
            found = os.fstat(self._file)
            if found.st_size != self._size or not found.st_nlink:
                return "somebody else has changed or removed it"
            written = os.write(self._file, line)
            if written == len(line):
                self._size += written
                return None
            problem = "no space left"
        except OSError as error:
            problem = error.strerror or str(error)
        with suppress(OSError):  # else the line is torn, and the next process says so
            os.ftruncate(self._file, self._size)
        return problem

    def _take_up(self) -> None:
        """Go on behind what is there; a torn line is ended, and named by the next record."""
        length = min(self._size, 2 * LONGEST)  # the last line, and one that is torn
        tail = os.pread(self._file, length, self._size - length)
        whole, _, rest = tail.rpartition(b"\n")
        if _record_in(rest):  # nothing but its line break is missing
            whole, rest = rest, b""
            self._end_line()
        if whole:
            last = _record_in(whole.rpartition(b"\n")[2])
            if last is None:
                os.close(self._file)
                remedy = "find out why with `relayswarm audit verify`, and put the file aside"
                problem = "its last line is no record"
                raise ConfigError("audit.file", str(self.path), problem, remedy)
            self._number, self._previous = last["number"], last["digest"]
        if rest:
            self._record(TORN, _json(_fragment(rest)), b"\n")

    def _end_line(self) -> None:
        try:
            os.write(self._file, b"\n")
        except OSError as error:
            raise _unusable(self.path, error) from error
        self._size += 1


# --- reading it ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verified:
    """A whole chain: how many records, the digest of the last, records by event, and how many bytes
    of a torn line are at its end. `holds` is whether the digest that was asked for is in it."""

    records: int
    head: str
    events: Mapping[str, int]
    torn_bytes: int = 0
    holds: bool = True


class BrokenChainError(Exception):
    """A line is not what it was, or not where it was; the text names it."""


def verify(lines: Iterable[bytes], wanted: str | None = None) -> Verified:
    """Follow the chain through a file's lines. Raises BrokenChainError."""
    number, previous, torn = 0, FIRST, b""
    events: dict[str, int] = {}
    holds = wanted is None
    place = 0
    for place, line in enumerate(lines, start=1):
        record = _record_in(line.removesuffix(b"\n"))
        if torn and not (record and _fragment(torn[:-1]).items() <= record.items()):
            raise BrokenChainError(f"line {place - 1} was changed: it is no record")
        torn = b""
        if record is None:
            torn = line
            continue
        number, previous = _next(record, place, number, previous), record["digest"]
        events[record["event"]] = events.get(record["event"], 0) + 1
        holds = holds or record["digest"] == wanted
    if torn.endswith(b"\n"):
        raise BrokenChainError(f"line {place} was changed: it is no record")
    return Verified(number, previous, events, len(torn), holds)


def _next(record: Mapping[str, Any], place: int, number: int, previous: str) -> int:
    """The number after that record's. Raises BrokenChainError if another one is due."""
    found = record["number"]
    if found > number:
        text = f"{found - number} before it (from number {number} on) were removed or moved"
    elif found < number:
        text = f"it has number {found}, where {number} is due: it was inserted or moved"
    elif record["previous"] != previous:
        text = "the line before it is not the one it was written behind"
    else:
        return number + 1
    raise BrokenChainError(f"line {place}: {text}")


def _record_in(line: bytes) -> dict[str, Any] | None:
    """The record in a line; None if that is not what was written."""
    body, sep, digest = line.rpartition(_OWN)
    if not sep or _digest_of(body + b"}").encode() + b'"}' != digest:
        return None
    try:
        found = json.loads(line)
    except ValueError:
        return None
    good = isinstance(found, dict) and isinstance(found.get("number"), int)
    return found if good and {"previous", "event"} <= found.keys() else None


def _fragment(torn: bytes) -> dict[str, Any]:
    """What the record behind a torn line says of it."""
    return {"torn_bytes": len(torn), "torn_sha256": hashlib.sha256(torn).hexdigest()}


# --- small things -------------------------------------------------------------------------------


_EMPTY = hashlib.sha256()


def _digest_of(text: bytes) -> str:
    """SHA-256 in hex. A copy is made in half the time of a new one."""
    found = _EMPTY.copy()
    found.update(text)
    return found.hexdigest()


def _json(fields: Mapping[str, Any]) -> str:
    """As in a record: without the braces."""
    shortened = {name: _shortened(value) for name, value in fields.items()}
    return json.dumps(shortened, separators=(",", ":"))[1:-1]


@lru_cache(maxsize=256)
def _way(receiver: str, known_by: str, kind: str, epoch: str) -> str:
    """What is the same of all payloads of a kind to a receiver."""
    return _json({"receiver": receiver, "known_by": known_by, "kind": kind, "epoch": epoch})


def _shortened(value: Any) -> Any:
    """As a record has it: of a text that is too long, the beginning and the digest of all of it."""
    if not isinstance(value, str) or len(value) <= LONGEST_TEXT:
        return value
    digest = hashlib.sha256(value.encode(errors="surrogatepass")).hexdigest()
    end = f"... ({len(value)} characters, sha256 {digest})"
    return value[: LONGEST_TEXT - len(end)] + end


def _open(path: Path) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _unusable(path, error) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(file)
        problem = "another process writes it"
        remedy = "give each peer a file of its own"
        raise ConfigError("audit.file", str(path), problem, remedy) from error
    return file


def _unusable(path: Path, error: OSError) -> ConfigError:
    problem = f"cannot be written ({error.strerror or error})"
    return ConfigError("audit.file", str(path), problem, "name a file in a folder of this user's")


def _told(path: Path, problem: str) -> str:
    return (
        f"{path}: what leaves cannot be recorded ({problem}), so nothing is sent any more; make "
        "room or mend the permissions, and start this peer again with --resume"
    )


def _digests(name: str | None) -> tuple[str, Callable[[], Digest]]:
    """The digest of that name, or the best that there is for this platform."""
    if name == "sha256":
        return name, hashlib.sha256
    try:
        from blake3 import blake3
    except ImportError as error:
        if name is None:
            return "sha256", hashlib.sha256
        remedy = "pip install blake3, or choose sha256"
        raise ConfigError("audit.digest", name, "there is no package for it", remedy) from error
    return "blake3", blake3
