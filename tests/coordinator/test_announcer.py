"""The same notice as a log line and as a line of JSON, with the same reason."""

import io
import json
import logging
from typing import Any

import pytest

from coordinator.announcer import Announcer, gave_up_text
from coordinator.conductor import Publication
from coordinator.members import (
    Admitted,
    Change,
    Decision,
    Elected,
    GaveUp,
    Gone,
    Member,
    Reason,
    Refusal,
    Refused,
    Renewed,
    RunFinished,
    Waiting,
)
from coordinator.progress import Progress
from coordinator.views import lay_out
from relayswarm.config import parse

MEMBERS = tuple(
    Member(f"peer-{k}", 1, f"host:{k}", "", 1, k, Progress.begin(4, 0.0), 9.0, 0.0)
    for k in range(4)
)


@pytest.fixture(autouse=True)
def _log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "relayswarm.coordinator")


def said(notice: Decision | Publication) -> list[dict[str, Any]]:
    stream = io.StringIO()
    Announcer(stream)(notice)
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def publication(graph: str = "chain") -> Publication:
    changes = (Change(Reason.JOINED, "peer-3"), Change(Reason.LEASE_EXPIRED, "peer-7"))
    elected = Elected(17, 2, 40, MEMBERS, changes)
    layout = lay_out(parse(f"[topology]\ngraph = '{graph}'"), [m.peer_id for m in MEMBERS])
    return Publication(elected, layout, 1)


def test_an_epoch(caplog: pytest.LogCaptureFixture) -> None:
    chain = [["peer-0", "peer-1"], ["peer-1", "peer-2"], ["peer-2", "peer-3"]]
    assert said(publication()) == [
        {
            "event": "topology",
            "epoch": {"term": 17, "number": 2},
            "root": "peer-0",
            "edges": chain,
            "trees": [chain],
            "members": ["peer-0", "peer-1", "peer-2", "peer-3"],
            "reason": "lease_expired",
            "detail": "lease_expired peer-7; joined peer-3",
            "notes": [],
            "effective_step": 40,
            "diameter": 3,
            "lr_factor": "3/2",
            "graph_edges": chain,
        }
    ]
    assert "lease_expired peer-7; joined peer-3" in caplog.text
    assert "epoch 17.2 from step 40: 4 peers, root peer-0, diameter 3" in caplog.text


def test_what_could_not_be_followed_is_said(caplog: pytest.LogCaptureFixture) -> None:
    (event,) = said(publication("social-network"))
    assert "candidate graph" in event["notes"][0]
    assert event["notes"][0] in event["detail"]
    assert event["notes"][0] in caplog.text


@pytest.mark.parametrize(
    ("notice", "event", "line"),
    [
        (
            Waiting(("peer-0", "peer-1"), 8),
            {"event": "waiting", "present": 2, "needed": 8, "members": ["peer-0", "peer-1"]},
            "waiting for 6 of 8 peers",
        ),
        (
            Admitted(MEMBERS[1], 1, (), candidate=False, note="shared"),
            {"event": "member_joined", "peer": "peer-1", "address": "host:1", "shard": 1},
            "peer-1: shared",
        ),
        (
            Gone(MEMBERS[1], Reason.UNREACHABLE),
            {"event": "member_lost", "peer": "peer-1", "step": 4, "reason": "unreachable"},
            "peer-1 is gone at step 4: unreachable",
        ),
        (
            Gone(MEMBERS[1], None),
            {"event": "member_finished", "peer": "peer-1", "step": 4},
            "peer-1 has done all steps",
        ),
        (
            Refused(Refusal.RUN, "why"),
            {"event": "join_refused", "reason": "run", "text": "why"},
            "join refused (run): why",
        ),
        (RunFinished(), {"event": "finished"}, "the run has finished"),
        (
            GaveUp(("peer-0",), 3),
            {"event": "gave_up", "present": 1, "needed": 3},
            "waiting for 2 of 3 peers (here: peer-0), and gave up",
        ),
    ],
)
def test_events(
    notice: Decision, event: dict[str, Any], line: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert said(notice) == [event]
    assert line in caplog.text


@pytest.mark.parametrize(
    "notice",
    [
        Renewed(),
        Admitted(MEMBERS[1], 1, (), candidate=True),
        Admitted(MEMBERS[1], 1, (), candidate=False, again=True),
    ],
)
def test_what_changes_nothing_is_not_worth_a_word(
    notice: Decision, caplog: pytest.LogCaptureFixture
) -> None:
    assert said(notice) == []
    assert caplog.text == ""


def test_where_to_join(caplog: pytest.LogCaptureFixture) -> None:
    stream = io.StringIO()
    Announcer(stream).started("run", "127.0.0.1:5", "127.0.0.1:6", "http://127.0.0.1:6")
    event = json.loads(stream.getvalue())
    assert (event["event"], event["address"]) == ("coordinator_started", "127.0.0.1:5")
    assert (event["metrics_address"], event["run_id"]) == ("127.0.0.1:6", "run")
    assert "relayswarm peer --coordinator 127.0.0.1:5" in caplog.text


def test_nobody_listening_is_no_error() -> None:
    class Closed(io.StringIO):
        def write(self, _: str) -> int:
            raise BrokenPipeError

    announcer = Announcer(Closed())
    announcer(RunFinished())
    announcer(RunFinished())


def test_giving_up_names_the_remedy() -> None:
    text = gave_up_text(GaveUp((), 2))
    assert "waiting for 2 of 2 peers, and gave up" in text
    assert "coordinator.start_timeout_s" in text
