"""Events as lines of JSON."""

from __future__ import annotations

import io
import json
import math
import threading

import pytest

from peer.announce import Announcer
from relayswarm.logs import finite


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


def test_an_event_is_one_line_flushed_at_once() -> None:
    stream = Recorder()
    Announcer(speaks=True, stream=stream)("step", peer="peer-0", loss=0.1, edges=[("a", "b")])
    assert stream.flushed == len(stream.getvalue())
    (line,) = stream.getvalue().splitlines()
    assert json.loads(line) == {
        "event": "step",
        "peer": "peer-0",
        "loss": 0.1,
        "edges": [["a", "b"]],
    }


def test_it_is_silent_unless_asked_to_speak() -> None:
    stream = Recorder()
    Announcer(speaks=False, stream=stream)("step", peer="peer-0")
    assert stream.getvalue() == ""


def test_it_speaks_on_standard_output_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    Announcer(speaks=True)("left")
    assert capsys.readouterr().out == '{"event": "left"}\n'


def test_what_is_not_finite_becomes_null() -> None:
    """JSON has neither NaN nor infinity, and other parsers refuse Python's."""
    stream = Recorder()
    values = {"accuracy": math.nan, "all": [1.5, -math.inf, (math.inf, 2)]}
    Announcer(speaks=True, stream=stream)("other", loss=math.nan, metrics=values)

    def refuse(name: str) -> None:
        raise AssertionError(name)

    event = json.loads(stream.getvalue(), parse_constant=refuse)
    assert event["loss"] is None
    assert event["metrics"] == {"accuracy": None, "all": [1.5, None, [None, 2]]}


@pytest.mark.parametrize("value", [0.1, 1 / 3, 5e-324, -0.0, 1.7976931348623157e308])
def test_finite_numbers_come_back_to_the_last_bit(value: float) -> None:
    assert json.loads(json.dumps(finite(value))) == value


def test_it_falls_silent_when_nobody_listens() -> None:
    stream = Closed()
    announce = Announcer(speaks=True, stream=stream)
    announce("step")
    announce("step")
    assert stream.writes == 1


def test_events_of_several_threads_keep_their_lines_apart() -> None:
    stream = Recorder()
    announce = Announcer(speaks=True, stream=stream)

    def speak(peer: int) -> None:
        for step in range(100):
            announce("step", peer=peer, step=step, text="x" * 200)

    threads = [threading.Thread(target=speak, args=(peer,)) for peer in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert len(events) == 400
    for peer in range(4):
        assert [event["step"] for event in events if event["peer"] == peer] == list(range(100))
