"""How a finished peer hears what the others have measured of the common model."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import Any

from coordinator.member_metrics import EvaluatedMetric, Evaluation
from peer.last_model import measured_elsewhere


def measured(step: int, value: float) -> Evaluation:
    return Evaluation(step, (EvaluatedMetric("loss", value, 1.0),))


class Finishing:
    """A peer at its end, `peer-0` of three with one model, whose coordinator says these things."""

    def __init__(self, answers: Iterator[Any]) -> None:
        common = SimpleNamespace(members=("peer-0", "peer-1", "peer-2"))
        swarm = SimpleNamespace(own=measured(9, 0.0))
        self.daemon: Any = SimpleNamespace(peer="peer-0", common=common, swarm=swarm)
        self._answers, self.asked = answers, 0

    def evaluations(self) -> Any:
        self.asked += 1
        return next(self._answers)

    def sites(self, patience_s: float) -> Mapping[str, Evaluation]:
        client: Any = self
        return measured_elsewhere(client, self.daemon, time.monotonic() + patience_s)


def test_a_finished_peer_asks_until_all_that_are_known_have_told() -> None:
    """What is of another step is of another model, as is that of who takes no part in this one."""
    one, two = measured(9, 0.1), measured(9, 0.2)
    known = {"peer-0": measured(9, 0.0), "peer-9": measured(9, 0.9)}
    answers = [
        known | {"peer-1": measured(6, 0.5), "peer-2": two},
        known | {"peer-1": None, "peer-2": two},
        known | {"peer-1": one, "peer-2": two},
    ]
    finishing = Finishing(iter(answers))
    assert finishing.sites(60) == {"peer-1": one, "peer-2": two}
    assert finishing.asked == 3


def test_who_has_died_or_is_silent_is_not_waited_for_beyond_the_time() -> None:
    one = measured(9, 0.1)
    finishing = Finishing(iter([{"peer-1": one}]))  # peer-2 is no member any more
    assert finishing.sites(60) == {"peer-1": one}
    silent = Finishing(iter([{"peer-1": one, "peer-2": None}]))
    assert silent.sites(0) == {"peer-1": one}


def test_a_coordinator_that_is_away_is_not_asked_again() -> None:
    one = measured(9, 0.1)
    answers = iter([{"peer-1": one, "peer-2": None}, None])
    finishing = Finishing(answers)
    assert finishing.sites(60) == {"peer-1": one}
    assert finishing.asked == 2


def test_without_a_common_model_nobody_is_asked() -> None:
    finishing = Finishing(iter([]))
    finishing.daemon.common = None
    assert finishing.sites(60) == {}
