"""Log lines that anyone can provoke are few."""

import logging

import pytest

from relayswarm.net.sparing import SparingLog, shortened


def test_words_from_outside_do_not_steer_a_terminal() -> None:
    assert shortened("a\n\x1b[2Jb\u202e") == "a??[2Jb?"
    assert len(shortened("x" * 10_000)) < 600


def test_one_line_of_each_kind_in_a_while(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    sparing = SparingLog(logging.getLogger("test"), every_s=10.0, clock=lambda: now[0])
    for second in range(25):
        now[0] = float(second)
        for _ in range(4):
            sparing.warning("token", f"no token at {second}")
    sparing.warning("identity", "not you")
    assert caplog.messages == [
        "no token at 0",
        "no token at 10 (and 39 more like it)",
        "no token at 20 (and 39 more like it)",
        "not you",
    ]


def test_an_error_is_told_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    sparing = SparingLog(logging.getLogger("test"))
    for _ in range(2):
        try:
            raise ValueError("no such bits")
        except ValueError:
            sparing.exception("ValueError", "sending to peer-1 failed")
    (record,) = caplog.records
    assert (record.levelname, record.getMessage()) == ("ERROR", "sending to peer-1 failed")
    assert caplog.text.count("ValueError: no such bits") == 1
