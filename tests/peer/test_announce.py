"""Who is told of a peer's events."""

from __future__ import annotations

import io

import pytest

from peer.announce import Announcer


def test_it_is_silent_unless_asked_to_speak() -> None:
    stream = io.StringIO()
    Announcer(speaks=False, stream=stream)("step", peer="peer-0")
    assert stream.getvalue() == ""


def test_it_speaks_on_standard_output_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    Announcer(speaks=True)("left")
    assert capsys.readouterr().out == '{"event": "left"}\n'
