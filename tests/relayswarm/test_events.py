"""Events as lines of JSON, and what becomes of them when they cannot be written."""

from __future__ import annotations

import io
import json
import math
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import pytest

from relayswarm.events import EventStream
from relayswarm.logs import finite

LONG = "x" * 5000  # more than what goes into a pipe whole or not at all


class Recorder(io.StringIO):
    """A stream that knows how much of it was flushed."""

    flushed = 0

    def flush(self) -> None:
        self.flushed = self.tell()


class Closed(io.StringIO):
    """A pipe whose reader has gone."""

    writes = 0

    def write(self, text: str) -> int:  # noqa: ARG002
        self.writes += 1
        raise BrokenPipeError


class Pipe:
    """Standard output that holds 64 KiB, and then is full until it is read."""

    def __init__(self) -> None:
        self._reader, writer = os.pipe()
        for end in (self._reader, writer):
            os.set_blocking(end, False)
        self.stream: TextIO = os.fdopen(writer, "w", encoding="utf-8")

    def read(self) -> bytes:
        """All that is in it."""
        found = b""
        while part := self._part():
            found += part
        return found

    def _part(self) -> bytes:
        try:
            return os.read(self._reader, 1 << 20)
        except BlockingIOError:
            return b""

    def close(self) -> None:
        self.stream.close()
        os.close(self._reader)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.close()


def test_an_event_is_one_line_flushed_at_once() -> None:
    stream = Recorder()
    EventStream(stream)({"event": "step", "loss": 0.1, "edges": [("a", "b")]})
    assert stream.flushed == len(stream.getvalue())
    (line,) = stream.getvalue().splitlines()
    assert json.loads(line) == {"event": "step", "loss": 0.1, "edges": [["a", "b"]]}


def test_it_comes_after_what_was_printed_before(pipe: Pipe) -> None:
    """A task of somebody else's may print."""
    tell = EventStream(pipe.stream)
    pipe.stream.write("epoch 1\n")
    tell({"event": "step"})
    assert pipe.read() == b'epoch 1\n{"event": "step"}\n'


def test_what_is_not_finite_becomes_null() -> None:
    """JSON has neither NaN nor infinity, and other parsers refuse Python's."""
    stream = Recorder()
    values = {"accuracy": math.nan, "all": [1.5, -math.inf, (math.inf, 2)]}
    EventStream(stream)({"loss": math.nan, "metrics": values})

    def refuse(name: str) -> None:
        raise AssertionError(name)

    event = json.loads(stream.getvalue(), parse_constant=refuse)
    assert event["loss"] is None
    assert event["metrics"] == {"accuracy": None, "all": [1.5, None, [None, 2]]}


@pytest.mark.parametrize("value", [0.1, 1 / 3, 5e-324, -0.0, 1.7976931348623157e308])
def test_finite_numbers_come_back_to_the_last_bit(value: float) -> None:
    assert json.loads(json.dumps(finite(value))) == value


def test_events_of_several_threads_keep_their_lines_apart() -> None:
    stream = Recorder()
    tell = EventStream(stream)

    def speak(peer: int) -> None:
        for step in range(100):
            tell({"peer": peer, "step": step, "text": "x" * 200})

    threads = [threading.Thread(target=speak, args=(peer,)) for peer in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert len(events) == 400
    for peer in range(4):
        assert [event["step"] for event in events if event["peer"] == peer] == list(range(100))


# --- when they cannot be written -----------------------------------------------------------------


def test_it_falls_silent_when_nobody_listens(caplog: pytest.LogCaptureFixture) -> None:
    stream = Closed()
    tell = EventStream(stream)
    tell({"event": "step"})
    tell({"event": "step"})
    assert stream.writes == 1
    assert not caplog.messages


def test_the_reader_of_a_pipe_may_go(caplog: pytest.LogCaptureFixture) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", encoding="utf-8") as stream:
        tell = EventStream(stream)
        tell({"event": "step"})
        tell({"event": "step"})
    assert not caplog.messages


def test_a_process_may_be_started_without_standard_output() -> None:
    """Then Python has None for it."""
    EventStream(None)({"event": "step"})


def test_a_full_disk_is_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        tell = EventStream(full)
        for step in range(3):
            tell({"event": "step", "step": step})
    assert caplog.messages == [
        "events cannot be written (No space left on device), and are left out until they can be"
    ]


def test_lines_stay_whole_and_come_back_once_there_is_room(
    pipe: Pipe, caplog: pytest.LogCaptureFixture
) -> None:
    tell = EventStream(pipe.stream)
    told: list[dict[str, Any]] = []
    while not caplog.messages:
        told.append({"step": len(told), "text": LONG})
        tell(told[-1])
    kept = pipe.read()
    assert not kept.endswith(b"\n"), "it was full in the middle of a line"
    for step in (-1, -2):
        fill(pipe)
        tell({"step": step})
        kept += pipe.read().lstrip(b"#")
    tell({"step": len(told)})
    kept += pipe.read()
    assert [json.loads(line) for line in kept.splitlines()] == [*told, {"step": len(told)}]
    assert caplog.messages[1:] == ["events can be written again: 2 were left out"]


def fill(pipe: Pipe) -> None:
    """To the last byte."""
    for count in (1 << 16, 1):
        while True:
            try:
                os.write(pipe.stream.fileno(), b"#" * count)
            except BlockingIOError:
                break


def test_what_is_torn_is_ended_bit_by_bit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Room for a few bytes at a time, less than is missing of a line."""
    room = iter([4, 0, 3, 0, 2, 0, 100, 100])
    real = os.write

    def write(descriptor: int, data: bytes) -> int:
        size = next(room)
        if not size:
            raise OSError(28, "No space left on device")
        return real(descriptor, data[:size])

    file = tmp_path / "events"
    with file.open("w", encoding="utf-8") as stream:
        tell = EventStream(stream)
        monkeypatch.setattr(os, "write", write)
        for step in range(5):
            tell({"step": step})
    lines = file.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [{"step": k} for k in (0, 3, 4)]
