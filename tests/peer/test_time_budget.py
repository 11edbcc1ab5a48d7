"""Local training for a time instead of a number of steps, before each exchange of a pair."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest

from peer.algorithms.core import Effect, Epoch, NewView, Run, Train, Trained, View
from peer.algorithms.swarmsgd import Options, SwarmSGD
from peer.cli import main
from peer.config import check_algorithm
from peer.simulator.run import simulate
from relayswarm.config import parse
from relayswarm.errors import ConfigError

PAIRWISE = ("swarmsgd", "adpsgd", "swarmsgd blocking")


def training_of(effects: list[Effect]) -> Train:
    (found,) = (effect for effect in effects if isinstance(effect, Train))
    return found


def test_the_next_local_steps_begin_after_those_that_were_taken() -> None:
    """Their numbers decide on the samples: none is drawn twice, none is left out."""
    alone = SwarmSGD(Run(total_steps=3), Options(time_budget_s=2.5))
    first = training_of(alone.handle(NewView(View(Epoch(1, 1), 0, "a", {"a": 1})), 0.0))
    second = training_of(alone.handle(Trained(0, 1, local_steps=7), 2.6))
    third = training_of(alone.handle(Trained(1, 1, local_steps=1), 5.2))
    assert [t.budget_s for t in (first, second, third)] == [2.5] * 3
    assert [t.local_steps.start for t in (first, second, third) if t.local_steps] == [0, 7, 8]


def run(method: str, *overrides: str) -> tuple[Any, dict[str, list[int]]]:
    """The outcome of a simulated run, and each peer's local steps before each average."""
    settings = ["task.name=quadratics", "peers=4", "topology.graph=complete"]
    name, _, blocking = method.partition(" ")
    settings += [f"algorithm.name={name}", *(["algorithm.blocking=true"] if blocking else [])]
    taken = defaultdict(list)

    def heard(event: dict[str, Any]) -> None:
        if event["event"] == "step":
            taken[event["peer"]].append(event["local_steps"])

    return simulate(parse("", [*settings, *overrides]), None, heard), taken


@pytest.mark.parametrize("method", PAIRWISE)
def test_a_slow_peer_takes_fewer_local_steps_in_the_same_time(method: str) -> None:
    budget = ("algorithm.time_budget_s=20", "steps=10", "faults.slow={peer-2 = 10}")
    outcome, taken = run(method, *budget)
    others = {"peer-0": [20] * 10, "peer-1": [20] * 10, "peer-3": [20] * 10}
    assert taken == {**others, "peer-2": [2] * 10}
    by_peer = {peer.id: peer.local_steps for peer in outcome.peers}
    assert by_peer == {"peer-0": 200, "peer-1": 200, "peer-2": 20, "peer-3": 200}
    assert outcome.simulation["gradient_evaluations"] == sum(by_peer.values())
    if "blocking" not in method:  # there peers wait for each other, besides
        assert outcome.simulation["virtual_seconds"] == pytest.approx(10 * 20, abs=1)
        assert max(peer.waited_s for peer in outcome.peers) < 1


def test_a_budget_that_is_overrun_ends_with_the_step_under_way() -> None:
    _, taken = run("swarmsgd", "algorithm.time_budget_s=2.5", "steps=3", "faults.slow={peer-2 = 9}")
    assert taken["peer-0"] == [3, 3, 3]
    assert taken["peer-2"] == [1, 1, 1]


def test_without_a_budget_nothing_changes() -> None:
    off, steps = run("swarmsgd", "algorithm.time_budget_s=0", "steps=5", "algorithm.local_steps=2")
    unset, _ = run("swarmsgd", "steps=5", "algorithm.local_steps=2")
    assert [peer.metrics for peer in off.peers] == [peer.metrics for peer in unset.peers]
    assert steps["peer-1"] == [2] * 5


REFUSED = {
    "relaysgd": ((), "algorithm.time_budget_s = 1.5: relaysgd has no such option"),
    "dpsgd": ((), "algorithm.time_budget_s = 1.5: dpsgd has no such option"),
    "swarmsgd": (("deterministic=true",), "leave it out, or set deterministic = false"),
    "adpsgd": (("algorithm.local_steps=3",), "there is algorithm.local_steps = 3, too; leave one"),
    "swarmsgd geometric": (
        ("algorithm.options.geometric=true",),
        "options.geometric says how many",
    ),
    "swarmsgd script": (('algorithm.options.script=[["a", "b"]]',), "options.script says how many"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_where_something_else_decides_it_is_refused(case: str) -> None:
    settings, words = REFUSED[case]
    name = f"algorithm.name={case.split()[0]}"
    with pytest.raises(ConfigError) as caught:
        check_algorithm(parse("", [name, "algorithm.time_budget_s=1.5", *settings]))
    assert caught.value.field == "algorithm.time_budget_s"
    assert words in str(caught.value)


@pytest.mark.parametrize("value", ["-1", "nan", "inf", "soon"])
def test_what_is_no_time_is_refused(value: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse("", ["algorithm.name=swarmsgd", f"algorithm.time_budget_s={value}"])
    assert caught.value.field == "algorithm.time_budget_s"


def test_a_deterministic_run_ends_with_exit_code_2(capfd: pytest.CaptureFixture[str]) -> None:
    given = ["simulate", "--algorithm", "swarmsgd", "--set", "algorithm.time_budget_s=1"]
    with pytest.raises(SystemExit) as ended:
        main([*given, "--set", "deterministic=true"])
    assert ended.value.code == 2
    assert "algorithm.time_budget_s = 1" in capfd.readouterr().err
