"""The commands of every page, really run: `make test-docs`. In `make test` only whether a rule says
how, or why not; test_blocks.py runs a part of them there."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from tests.docs.conftest import PAGES
from tests.docs.sessions import ELSEWHERE, PLAIN, RESULTS, Session, commands_of, reason_not_to_run

ALL = [words for page in PAGES for words in commands_of(page)]
PROGRAMS = {"relayswarm", "curl", *PLAIN, *RESULTS}
TARGETS = {"demo", "help"}


@pytest.mark.parametrize("words", ALL, ids=shlex.join)
def test_a_rule_says_how_a_command_is_run_or_why_not(words: list[str]) -> None:
    if reason_not_to_run(words) is None:
        assert words[0] in PROGRAMS or (words[0] == "make" and {*words[1:]} <= TARGETS), (
            "give it a rule in tests/docs/sessions.py"
        )


def test_a_command_without_a_rule_is_noticed() -> None:
    with pytest.raises(AssertionError, match="give it a rule"):
        test_a_rule_says_how_a_command_is_run_or_why_not(["wget", "http://example.org"])
    with pytest.raises(AssertionError, match="give it a rule"):
        test_a_rule_says_how_a_command_is_run_or_why_not(["make", "soak"])


def test_no_reason_is_left_over() -> None:
    lines = [shlex.join(words) + " " for words in ALL]
    assert [start for start in ELSEWHERE if not any(line.startswith(start) for line in lines)] == []


@pytest.mark.timeout(480)
def test_a_session_starts_a_swarm_and_asks_it(tmp_path: Path) -> None:
    """A short one of all that pages do with daemons, so that the rules themselves are tried."""
    lines = (
        "relayswarm certs certs --peers 2 --id operator --host coordinator.example",
        "relayswarm coordinator --listen 0.0.0.0:50050 --tls-ca certs/ca.pem "
        "--tls-cert certs/coordinator.pem --tls-key certs/coordinator.key",
        "relayswarm peer --id peer-0 --coordinator coordinator.example:50050 "
        "--listen 0.0.0.0:50051 --advertise a.example:50051 --metrics-listen 127.0.0.1:9101 "
        "--tls-ca certs/ca.pem --tls-cert certs/peer-0.pem --tls-key certs/peer-0.key",
        "curl http://127.0.0.1:9101/metrics",
    )
    with Session(tmp_path / "session", [shlex.split(line) for line in lines]) as session:
        session.run()
        assert session.ran == list(lines)


def test_a_command_that_fails_fails_the_session(tmp_path: Path) -> None:
    lines: list[Any] = [["relayswarm", "topology", "--graph", "chain", "--peers", "0"]]
    with (
        Session(tmp_path / "session", lines) as session,
        pytest.raises(AssertionError, match="peers = 0"),
    ):
        session.run()
