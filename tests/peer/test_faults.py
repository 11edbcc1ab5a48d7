"""The fault plan: the right share of messages, the same ones for all who ask."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peer.faults import FaultPlan, check_possible
from relayswarm.config import FaultsConfig, parse
from relayswarm.errors import ConfigError

PEERS = [f"peer-{i}" for i in range(8)]


def plan(drop: float, seed: int = 0) -> FaultPlan:
    return FaultPlan(FaultsConfig(drop=drop), seed)


def losses(plan: FaultPlan, steps: int) -> list[bool]:
    return [
        plan.drops(step, 0, 0, sender, receiver)
        for step in range(steps)
        for sender in PEERS
        for receiver in PEERS
        if sender != receiver
    ]


def test_loses_the_share_it_is_told_to() -> None:
    for drop in (0.01, 0.1, 0.5):
        lost = losses(plan(drop, seed=3), steps=200)
        deviation = math.sqrt(len(lost) * drop * (1 - drop))
        # five standard deviations: one such plan in 1.7 million would fail, and it is a fixed one
        assert abs(sum(lost) - len(lost) * drop) < 5 * deviation


def test_losses_are_not_bunched() -> None:
    """A pair of successive messages is lost with probability drop^2: losses are independent."""
    lost = losses(plan(0.3, seed=1), steps=200)
    pairs = sum(a and b for a, b in itertools.pairwise(lost))
    expected = (len(lost) - 1) * 0.09
    assert abs(pairs - expected) < 6 * math.sqrt(expected)


@given(st.integers(0, 2**31 - 1), st.integers(0, 10**6), st.integers(0, 3), st.sampled_from(PEERS))
def test_never_and_always(seed: int, step: int, round: int, sender: str) -> None:
    assert not plan(0.0, seed).drops(step, round, 0, sender, "other")
    assert plan(1.0, seed).drops(step, round, 0, sender, "other")


@given(st.integers(0, 2**31 - 1), st.integers(0, 10**6))
def test_is_a_function_of_its_arguments_and_both_halves_share_a_fate(seed: int, step: int) -> None:
    first, second = plan(0.5, seed), plan(0.5, seed)
    a = first.drops(step, 0, 0, "peer-1", "peer-2")
    assert second.drops(step, 0, 0, "peer-1", "peer-2") == a
    assert second.drops(step, 0, 1, "peer-1", "peer-2") == a


def test_a_more_lossy_plan_loses_what_the_milder_one_does_and_more() -> None:
    mild, harsh = losses(plan(0.1), 50), losses(plan(0.2), 50)
    assert all(b for a, b in zip(mild, harsh, strict=True) if a)


def test_seed_step_round_and_direction_matter() -> None:
    base = losses(plan(0.5, seed=0), 20)
    assert losses(plan(0.5, seed=1), 20) != base
    p = plan(0.5)
    forth = [p.drops(step, 0, 0, "a", "b") for step in range(64)]
    assert [p.drops(step, 0, 0, "b", "a") for step in range(64)] != forth
    assert [p.drops(step, 1, 0, "a", "b") for step in range(64)] != forth


def test_names_cannot_run_into_each_other() -> None:
    p = plan(0.5)
    one = [p.drops(step, 0, 0, "a', 'b", "c") for step in range(64)]
    assert [p.drops(step, 0, 0, "a", "b', 'c") for step in range(64)] != one


def test_the_daemons_and_the_simulator_agree_for_good() -> None:
    """Pins the plan: recorded runs are replayed with later versions."""
    p = plan(0.5, seed=7)
    fates = "".join("x" if p.drops(step, 0, 0, "peer-0", "peer-1") else "." for step in range(32))
    assert fates == ".xxx..xx....x.........x...x.x.xx"


def test_says_whether_losses_are_announced() -> None:
    assert FaultPlan(FaultsConfig(loss="known"), 0).announced
    assert not FaultPlan(FaultsConfig(loss="silent"), 0).announced


def test_an_edge_has_its_own_faults_in_its_own_steps() -> None:
    edges = [
        {"sender": "peer-0", "receiver": "peer-1", "drop": 0.0, "delay_s": 2.0},
        {"sender": "peer-0", "receiver": "peer-1", "drop": 1.0, "steps": [3, 5]},
    ]
    faults = FaultPlan(FaultsConfig(drop=1.0, edge=edges), 0)
    lost = [faults.drops(step, 0, 0, "peer-0", "peer-1") for step in range(7)]
    assert lost == [step in (3, 5) for step in range(7)]
    assert faults.fate(0, 0, 0, "peer-0", "peer-1").delays_s == (2.0,)
    assert faults.fate(3, 0, 0, "peer-0", "peer-1").lost
    assert faults.drops(0, 0, 0, "peer-1", "peer-0")  # the other direction


@given(st.integers(0, 2**31 - 1), st.integers(0, 10**4), st.floats(0, 5), st.floats(0, 5))
def test_each_copy_is_late_within_the_bounds(
    seed: int, step: int, delay: float, more: float
) -> None:
    faults = FaultPlan(FaultsConfig(delay_s=delay, jitter_s=more, duplicate=1.0), seed)
    fate = faults.fate(step, 0, 0, "peer-0", "peer-1")
    assert len(fate.delays_s) == 2
    assert all(delay <= late <= delay + more for late in fate.delays_s)
    assert faults.fate(step, 0, 0, "peer-0", "peer-1") == fate


def test_as_many_come_twice_as_asked_for_whatever_is_lost() -> None:
    places = [(step, peer) for step in range(500) for peer in PEERS[1:]]
    faults = FaultPlan(FaultsConfig(drop=0.5, duplicate=0.3), 1)
    fates = [faults.fate(step, 0, 0, "peer-0", peer) for step, peer in places]
    arrived = [fate for fate in fates if not fate.lost]
    twice = sum(len(fate.delays_s) == 2 for fate in arrived)
    assert abs(twice - 0.3 * len(arrived)) < 5 * math.sqrt(len(arrived) * 0.3 * 0.7)


def test_a_partition_is_between_groups_and_for_a_time() -> None:
    faults = FaultPlan(
        FaultsConfig(partition=[{"start_s": 2, "end_s": 4, "group": ["peer-0", "peer-1"]}]), 0
    )
    assert [faults.parted(t, "peer-0", "peer-2") for t in (1.9, 2, 3.9, 4)] == [
        False, True, True, False,
    ]  # fmt: skip
    assert faults.parted(3, "peer-2", "peer-1")
    assert not faults.parted(3, "peer-0", "peer-1")
    assert not faults.parted(3, "peer-2", "peer-3")


def test_who_is_slow_and_who_is_not() -> None:
    faults = FaultPlan(FaultsConfig(slow={"peer-3": 10}), 0)
    assert faults.slow_down("peer-3") == 10
    assert faults.slow_down("peer-2") == 1
    assert not faults.touches_messages


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[faults]\nslow = {peer-1 = 0.5}", "factor is below 1"),
        ("[[faults.crash]]\npeer = 'peer-1'", "needs either at_s or at_step"),
        ("[[faults.crash]]\npeer = 'peer-1'\nat_s = 1\nat_step = 1", "needs either"),
        ("[[faults.crash]]\npeer = 'peer-1'\nat_stp = 1", "did you mean 'at_step'"),
        ("[[faults.partition]]\nstart_s = 4\nend_s = 2\ngroup = ['a']", "end_s is not after"),
        ("[[faults.partition]]\nstart_s = 1\nend_s = 2\ngroup = []", "at least 1 item"),
        ("[[faults.edge]]\nsender = 'a'\nreceiver = 'b'\ndrop = 1.5", "faults.edge.0.drop"),
    ],
)
def test_plans_that_make_no_sense_are_refused(text: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        parse(text)


def test_a_plan_survives_the_way_through_toml() -> None:
    config = parse(
        "[faults]\ndrop = 0.1\nslow = {peer-1 = 2.5}\n"
        "[[faults.edge]]\nsender = 'peer-0'\nreceiver = 'peer-1'\nsteps = [1, 2]\n"
        "[[faults.partition]]\nstart_s = 1\nend_s = 2\ngroup = ['peer-0']\n"
        "[[faults.crash]]\npeer = 'peer-1'\nat_step = 3\nrejoin_after_s = 4\n"
    )
    assert parse(config.to_toml()) == config


@pytest.mark.parametrize("name", ["crash", "partition", "reorder"])
def test_processes_refuse_what_only_the_simulator_can_do(name: str) -> None:
    values = {
        "crash": [{"peer": "peer-0", "at_s": 1}],
        "partition": [{"start_s": 1, "end_s": 2, "group": ["peer-0"]}],
        "reorder": True,
    }
    with pytest.raises(ConfigError, match=f"faults.{name}"):
        check_possible(FaultsConfig.model_validate({name: values[name]}))
    check_possible(FaultsConfig(drop=0.5, slow={"peer-0": 2}))
