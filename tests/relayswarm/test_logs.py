"""Log lines of daemons, for people and for programs."""

from __future__ import annotations

import io
import json
import logging
import math

import pytest

from relayswarm import logs
from relayswarm.errors import ConfigError
from relayswarm.logs import LogFormat

log = logging.getLogger("relayswarm.test")


class Terminal(io.StringIO):
    """A stream that people read."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """Close no handlers of others."""
    monkeypatch.setattr(logging.getLogger(), "handlers", [])


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


@pytest.mark.parametrize(
    ("log_format", "stream", "tells_events", "is_json"),
    [
        (LogFormat.AUTO, Terminal(), False, False),
        (LogFormat.AUTO, io.StringIO(), False, True),
        (LogFormat.AUTO, io.StringIO(), True, False),
        (LogFormat.TEXT, io.StringIO(), False, False),
        (LogFormat.JSON, Terminal(), True, True),
    ],
    ids=["terminal", "elsewhere", "with events", "text", "json"],
)
def test_the_format(
    log_format: LogFormat, stream: io.StringIO, tells_events: bool, is_json: bool
) -> None:
    logs.configure(log_format, tells_events=tells_events, stream=stream)
    log.warning("two\nlines")
    assert stream.getvalue().startswith("{") == is_json
    assert len(stream.getvalue().splitlines()) == (1 if is_json else 2)


def test_a_line_says_of_whom_and_when_it_is() -> None:
    stream = io.StringIO()
    logs.configure(LogFormat.JSON, stream=stream)
    log.info("early")
    step = 3
    logs.set_context(run=lambda: "r", peer=lambda: "peer-0", epoch=lambda: None, step=lambda: step)
    logs.event(log, logging.INFO, "evaluation", "step 3", metrics={"loss": math.nan})
    step = 4
    logs.event(log, logging.WARNING, "member_lost", "gone", peer="peer-9")
    early, evaluation, lost = lines(stream)
    assert early.keys() == {"time", "level", "event", "message"}
    assert (early["event"], early["level"]) == ("log", "info")
    assert str(evaluation["time"]).endswith("+00:00")
    assert evaluation["metrics"] == {"loss": None}
    assert [evaluation[key] for key in ("run", "peer", "step")] == ["r", "peer-0", 3]
    assert "epoch" not in evaluation
    assert [lost[key] for key in ("level", "peer", "step")] == ["warning", "peer-9", 4]


def test_an_error_has_the_form_of_the_log(capsys: pytest.CaptureFixture[str]) -> None:
    error = ConfigError("peers", 0, "too few", "use 1 or more")
    logs.fatal(error)
    assert capsys.readouterr().err == f"error: {error}\n"
    stream = io.StringIO()
    logs.configure(LogFormat.JSON, stream=stream)
    logs.fatal(error)
    (line,) = lines(stream)
    assert (line["level"], line["event"], line["message"]) == ("error", "error", str(error))
    assert capsys.readouterr().err == ""


def test_an_exception_is_on_the_same_line() -> None:
    stream = io.StringIO()
    logs.configure(LogFormat.JSON, stream=stream)
    try:
        raise ValueError("a bug")
    except ValueError:
        log.exception("it failed")
    (line,) = lines(stream)
    assert "ValueError: a bug" in str(line["traceback"])
