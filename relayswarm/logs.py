"""Log lines of a daemon on standard error: for people on a terminal, as JSON elsewhere.

A JSON line says of whom and when it is, as far as that is known: `run`, `peer`, `epoch`, `step`.
"""

from __future__ import annotations

import json
import logging
import math
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, TextIO, TypeAlias

import typer


class LogFormat(StrEnum):
    """How log lines are written."""

    AUTO = "auto"
    TEXT = "text"
    JSON = "json"


LogFormatOption: TypeAlias = Annotated[
    LogFormat,
    typer.Option(
        "--log-format",
        help="Of lines on standard error. auto: text on a terminal and with --json, else JSON.",
    ),
]

CONTEXT = ("run", "peer", "epoch", "step")

_context: dict[str, Callable[[], Any]] = {}


def configure(
    log_format: LogFormat, *, tells_events: bool = False, stream: TextIO | None = None
) -> None:
    """Let this process log to `stream`, by default standard error. `tells_events`: programs get
    theirs on standard output, so that `auto` leaves the log to people."""
    where = stream or sys.stderr
    if log_format is LogFormat.AUTO:
        for_people = tells_events or where.isatty()
        log_format = LogFormat.TEXT if for_people else LogFormat.JSON
    handler = logging.StreamHandler(where)
    if log_format is LogFormat.JSON:
        handler.setFormatter(_JsonFormatter())
    else:
        handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    _context.clear()
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


def set_context(**now: Callable[[], Any]) -> None:
    """What to ask for `run`, `peer`, `epoch` and `step` when a line is written; None: not known."""
    _context.update(now)


def event(log: logging.Logger, level: int, name: str, text: str, **fields: Any) -> None:
    """Log an event: `text` for people, `name` and fields besides for programs."""
    log.log(level, "%s", text, extra={"event": name, "fields": fields})


def fatal(error: Exception) -> None:
    """The last line of a command that failed, in the form that its log has."""
    handlers = logging.getLogger().handlers
    if any(isinstance(handler.formatter, _JsonFormatter) for handler in handlers):
        event(logging.getLogger("relayswarm"), logging.ERROR, "error", str(error))
    else:
        typer.echo(f"error: {error}", err=True)


def plain(value: Any) -> Any:
    """JSON has no NaN: a number that is not finite becomes null."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return finite(value) if isinstance(value, float) else value


def finite(value: float) -> float | None:
    """None in place of NaN and infinity."""
    return value if math.isfinite(value) else None


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        known = {name: _context[name]() for name in CONTEXT if name in _context}
        fields: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": getattr(record, "event", "log"),
            **{name: value for name, value in known.items() if value is not None},
            **getattr(record, "fields", {}),
            "message": record.getMessage(),
        }
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        return json.dumps(plain(fields))
