"""What a member does when its coordinator lets it go, and how it hears of the others at its end."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from coordinator.member_metrics import EvaluatedMetric, Evaluation
from peer.parts import PeerOptions
from peer.service import Peer
from peer.transport.coordinator_client import NoAnswerError
from relayswarm.errors import JoinError


@pytest.mark.parametrize(
    ("error", "ends"), [(NoAnswerError("away"), False), (JoinError("refused"), True)]
)
def test_only_a_refusal_ends_a_member_that_joins_again(
    monkeypatch: pytest.MonkeyPatch, error: JoinError, ends: bool
) -> None:
    peer = Peer(PeerOptions(coordinator="127.0.0.1:1"))

    def join(*_: object) -> None:
        raise error

    monkeypatch.setattr(peer.client, "join", join)
    failed: list[Exception] = []
    parts: Any = SimpleNamespace(daemon=SimpleNamespace(peer="peer-0", fail=failed.append))
    peer._rejoin(parts)
    peer.client.close()
    assert failed == ([error] if ends else [])


def measured(step: int, value: float) -> Evaluation:
    return Evaluation(step, (EvaluatedMetric("loss", value, 1.0),))


class Finishing:
    """A peer at its end, `peer-0` of three with one model, whose coordinator says these things."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, answers: Iterator[Any]) -> None:
        self.peer, self.asked = Peer(PeerOptions(coordinator="127.0.0.1:1")), 0
        common = SimpleNamespace(members=("peer-0", "peer-1", "peer-2"))
        swarm = SimpleNamespace(own=measured(9, 0.0))
        daemon = SimpleNamespace(peer="peer-0", common=common, swarm=swarm)
        self.parts: Any = SimpleNamespace(daemon=daemon)

        def evaluations() -> Any:
            self.asked += 1
            return next(answers)

        monkeypatch.setattr(self.peer.client, "evaluations", evaluations)

    def sites(self, patience_s: float) -> Mapping[str, Evaluation]:
        found = self.peer._sites(self.parts, time.monotonic() + patience_s)
        self.peer.client.close()
        return found


def test_a_finished_peer_asks_until_all_that_are_known_have_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is of another step is of another model, as is that of who takes no part in this one."""
    one, two = measured(9, 0.1), measured(9, 0.2)
    known = {"peer-0": measured(9, 0.0), "peer-9": measured(9, 0.9)}
    answers = [
        known | {"peer-1": measured(6, 0.5), "peer-2": two},
        known | {"peer-1": None, "peer-2": two},
        known | {"peer-1": one, "peer-2": two},
    ]
    finishing = Finishing(monkeypatch, iter(answers))
    assert finishing.sites(60) == {"peer-1": one, "peer-2": two}
    assert finishing.asked == 3


def test_who_has_died_or_is_silent_is_not_waited_for_beyond_the_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = measured(9, 0.1)
    finishing = Finishing(monkeypatch, iter([{"peer-1": one}]))  # peer-2 is no member any more
    assert finishing.sites(60) == {"peer-1": one}
    silent = Finishing(monkeypatch, iter([{"peer-1": one, "peer-2": None}]))
    assert silent.sites(0) == {"peer-1": one}


def test_a_coordinator_that_is_away_is_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    one = measured(9, 0.1)
    answers = iter([{"peer-1": one, "peer-2": None}, None])
    finishing = Finishing(monkeypatch, answers)
    assert finishing.sites(60) == {"peer-1": one}
    assert finishing.asked == 2


def test_without_a_common_model_nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    finishing = Finishing(monkeypatch, iter([]))
    finishing.parts.daemon.common = None
    assert finishing.sites(60) == {}
