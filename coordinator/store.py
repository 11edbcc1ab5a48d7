"""What the coordinator must not forget: the run's config, its last epoch, its model's fingerprint.

An SQLite file, or memory; or etcd, see `etcd_store`. Membership is not kept: it is rebuilt from the
peers within a lease.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from relayswarm.config import RunConfig, parse
from relayswarm.errors import ConfigError

_SETTINGS = """
PRAGMA synchronous = FULL;
PRAGMA locking_mode = EXCLUSIVE;
BEGIN EXCLUSIVE;
COMMIT;
"""
_SCHEMA = """
CREATE TABLE IF NOT EXISTS run (
  only INTEGER PRIMARY KEY CHECK (only = 1),
  run_id TEXT NOT NULL,
  config TEXT NOT NULL,
  term TEXT NOT NULL,
  number TEXT NOT NULL,
  fingerprint TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS stop (
  only INTEGER PRIMARY KEY CHECK (only = 1),
  began_at REAL NOT NULL,
  step TEXT NOT NULL
)
"""  # 64-bit unsigned values as text, for SQLite's integers are signed


@dataclass(frozen=True, slots=True)
class Memory:
    """The epoch published last, and the fingerprint of the run's model (0: not known yet); when the
    run began (seconds since 1970, 0: not yet), and the step before which it ends (0: by itself)."""

    term: int
    number: int
    fingerprint: int
    began_at: float = 0.0
    stop_step: int = 0


class RunStore(Protocol):
    """Where a coordinator keeps what it must not forget. Any thread may call it."""

    is_shared: ClassVar[bool]  # by several coordinators, of which one leads

    def lead(
        self, is_stopped: Callable[[], bool], on_lost: Callable[[Exception], None]
    ) -> bool: ...
    def stored_config(self) -> RunConfig | None: ...
    def open_run(self, config: RunConfig, first_term: int) -> Memory: ...
    def save(self, memory: Memory) -> None: ...
    def close(self) -> None: ...


class Store:
    """The coordinator's memory. Any thread may call it; every write is on disk when it returns."""

    is_shared: ClassVar[bool] = False

    def __init__(self, path: Path | None = None) -> None:
        """Open or create the file; None keeps everything in memory. Raises ConfigError."""
        self._path = path
        self._lock = threading.Lock()
        self._connection = self._connect()

    def stored_config(self) -> RunConfig | None:
        """The config of the run that this store holds; None if it is new. Raises ConfigError."""
        rows = self._read("SELECT config FROM run")
        return parse(rows[0][0], source=f"run config in {self._path}") if rows else None

    def lead(self, is_stopped: Callable[[], bool], on_lost: Callable[[Exception], None]) -> bool:  # noqa: ARG002
        """Who has opened the file leads."""
        return True

    def open_run(self, config: RunConfig, first_term: int) -> Memory:
        """Take up the run of this config, or begin it with `first_term`.

        Raises ConfigError if the store holds another run, or this one under another config: peers
        that are training by that config must not meet others that train by this one.
        """
        stored = self.stored_config()
        if stored is None:
            values = (config.run_id, config.to_toml(), str(first_term))
            self._write(("INSERT INTO run VALUES (1, ?, ?, ?, '0', '0')", values))
            return Memory(first_term, 0, 0)
        check_same(stored, config, str(self._path))
        ((term, number, fingerprint),) = self._read("SELECT term, number, fingerprint FROM run")
        ends = self._read("SELECT began_at, step FROM stop") or [("0", "0")]
        began_at, step = float(ends[0][0]), int(ends[0][1])
        return Memory(int(term), int(number), int(fingerprint), began_at, step)

    def save(self, memory: Memory) -> None:
        """Put an epoch on disk; it may be published after this. Raises ConfigError, and then the
        one before is still there, whole."""
        epoch = (str(memory.term), str(memory.number), str(memory.fingerprint))
        stop = (str(memory.began_at), str(memory.stop_step))
        self._write(
            ("UPDATE run SET term = ?, number = ?, fingerprint = ?", epoch),
            ("INSERT OR REPLACE INTO stop VALUES (1, ?, ?)", stop),
        )

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()

    def _connect(self) -> sqlite3.Connection:
        """Open the file, and keep other coordinators out of it."""
        try:
            where = self._path if self._path is not None else ":memory:"
            connection = sqlite3.connect(where, timeout=1.0, check_same_thread=False)
        except sqlite3.Error as error:
            raise self._unusable(error) from error
        try:
            connection.executescript(_SETTINGS + _SCHEMA)
        except sqlite3.Error as error:
            connection.close()
            raise self._unusable(error) from error
        return connection

    def _read(self, query: str) -> list[tuple[str, ...]]:
        try:
            with self._lock:
                return self._connection.execute(query).fetchall()
        except sqlite3.Error as error:
            raise self._unusable(error) from error

    def _write(self, *statements: tuple[str, tuple[str, ...]]) -> None:
        """All of them in one transaction, so that a process killed in between has written none.
        Python begins one before what inserts or updates; leaving `with` ends it."""
        try:
            with self._lock, self._connection:
                for statement, values in statements:
                    self._connection.execute(statement, values)
        except sqlite3.Error as error:
            raise self._unusable(error) from error

    def _unusable(self, error: sqlite3.Error) -> ConfigError:
        problem = f"cannot be used as the coordinator's store ({error})"
        remedy = "give a file in a folder that can be written, used by no other coordinator"
        return ConfigError("store", str(self._path), problem, remedy)


def check_same(stored: RunConfig, config: RunConfig, where: str) -> None:
    """Raise ConfigError if the run in the store is not that of this config."""
    if stored.run_id != config.run_id:
        problem = f"holds the run {stored.run_id!r}, not {config.run_id!r}"
        raise ConfigError("store", where, problem, "give another one for --store")
    difference = _first_difference(stored.model_dump(), config.model_dump())
    if difference:
        field, was, now = difference
        problem = f"run {config.run_id!r} was started with {field} = {was!r}, not {now!r}"
        remedy = "leave --config out to go on with that, or choose another run_id and store"
        raise ConfigError("store", where, problem, remedy)


def _first_difference(
    was: Mapping[str, Any], now: Mapping[str, Any], prefix: str = ""
) -> tuple[str, Any, Any] | None:
    for key in [*was, *(k for k in now if k not in was)]:
        a, b = was.get(key), now.get(key)
        if a == b:
            continue
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            return _first_difference(a, b, f"{prefix}{key}.")
        return f"{prefix}{key}", a, b
    return None
