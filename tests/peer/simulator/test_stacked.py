"""Stacked runs end as runs with one object per peer do, and count the same."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch

from peer.outcome import RunOutcome
from peer.simulator import telling
from peer.simulator.learning import Simulation
from peer.simulator.run import simulate
from peer.simulator.stacked_run import StackedSimulation, is_better_recorded, is_wanted
from relayswarm.config import RunConfig, parse
from relayswarm.errors import ConfigError

TEXT = """
peers = 6
steps = 24
[task]
name = "quadratics"
options = {dimension = 5}
[topology]
graph = "chain"
"""
DOUBLE = ('topology.graph="double-binary-trees"', 'topology.tree="double-binary-trees"')
ADAPTIVE = ('algorithm.name="dpsgd-qgm"', 'topology.graph="ring"', 'optimizer.name="adam"')
LOSSES = "faults.drop=0.2"
PRODUCT = str(Path(telling.__file__).parents[1])


def both(*overrides: str) -> tuple[RunOutcome, RunOutcome, StackedSimulation]:
    """The run with an object of every kind per peer, and stacked."""
    config = parse(TEXT, overrides)
    alone = Simulation(config, None, lambda _: None, 0).run()
    stacked = StackedSimulation(config, None, lambda _: None, stacking="on")
    return alone, stacked.run(), stacked


def assert_same(alone: RunOutcome, stacked: RunOutcome, tolerance: float) -> None:
    for a, b in zip(alone.peers, stacked.peers, strict=True):
        counts = ("id", "steps", "messages_sent", "messages_expected", "messages_missed")
        for name in (*counts, "bytes_sent", "shard", "shard_digest"):
            assert getattr(a, name) == getattr(b, name)
        assert a.model is not None
        assert b.model is not None
        for name, tensor in a.model.items():
            torch.testing.assert_close(b.model[name], tensor, rtol=tolerance, atol=tolerance)
        assert [step for step, _ in a.losses] == [step for step, _ in b.losses]
        assert [loss for _, loss in b.losses] == pytest.approx([loss for _, loss in a.losses])
        assert b.metrics == pytest.approx(a.metrics)
    assert alone.simulation is not None
    assert stacked.simulation is not None
    assert set(alone.simulation) == set(stacked.simulation)
    for name, value in alone.simulation.items():
        assert stacked.simulation[name] == pytest.approx(value), name


@pytest.mark.parametrize(
    ("overrides", "replays"),
    [
        ((), True),
        (('topology.graph="binary-tree"',), True),
        (DOUBLE, True),
        (('algorithm.fallback="counts"',), True),
        (('algorithm.name="d2"', 'topology.graph="ring"'), True),
        (('algorithm.name="gradient-tracking"', 'topology.graph="ring"'), True),
        (('algorithm.name="dpsgd-qgm"', 'topology.graph="ring"'), True),
        ((*ADAPTIVE, "algorithm.local_steps=2"), True),
        ((*ADAPTIVE, LOSSES), False),
        (('algorithm.name="sgp"', "peers=8"), True),
        (("algorithm.overlap=true",), False),
        (("algorithm.local_steps=3", "optimizer.relay_lr_correction=true"), True),
        (("evaluation.every=6", "optimizer.momentum=0.9"), True),
        ((LOSSES,), False),
        ((*DOUBLE, LOSSES), False),
        (('algorithm.name="d2"', LOSSES), False),
        (('algorithm.name="sgp"', "peers=8", LOSSES), False),
        ((LOSSES, 'faults.loss="silent"', "steps=8"), False),
        (("faults.slow={peer-1=2.5}",), False),
        (('algorithm.name="swarmsgd"', "algorithm.local_steps=2", "steps=8"), False),
        (('algorithm.name="swarmsgd"', "algorithm.blocking=true", "steps=8"), False),
    ],
    ids=str,
)
def test_a_stacked_run_is_the_run_up_to_rounding(
    overrides: tuple[str, ...], *, replays: bool
) -> None:
    alone, together, simulation = both(*overrides)
    assert simulation.choice.is_stacked
    assert_same(alone, together, 1e-9)
    assert (simulation.swarm.replayed > 0) == replays


def test_sums_travel_through_the_wire_format() -> None:
    alone, together, _ = both('transport.wire_format="bfloat16"', "steps=3")
    assert_same(alone, together, 1e-3)  # a value at the edge of two roundings may take the other
    exact, _, _ = both("steps=3")
    assert alone.peers[0].model is not None
    assert exact.peers[0].model is not None
    assert not torch.equal(alone.peers[0].model["x"], exact.peers[0].model["x"])


def test_a_loss_with_noise_is_trained_peer_by_peer_and_bit_for_bit() -> None:
    """Random numbers belong to each peer, so only one after another draws them as alone."""
    alone, together, simulation = both("task.options.gradient_noise=0.5", "peers=3", "steps=4")
    assert not simulation.choice.is_stacked
    assert "cannot be stacked" in simulation.choice.reason
    assert_same(alone, together, 1e-12)


def test_shards_smaller_than_a_batch_are_trained_peer_by_peer() -> None:
    small = ('task.name="digits"', "task.options={}", "data.batch_size=480", "steps=2", "peers=4")
    alone, together, simulation = both(*small)
    assert not simulation.choice.is_stacked  # 1,438 samples cannot be cut into four equal parts
    assert "smaller than a batch" in simulation.choice.reason
    assert_same(alone, together, 1e-5)


def test_digits_with_its_convolutions_and_an_adaptive_optimizer() -> None:
    adam = ('optimizer.name="adamw"', "optimizer.lr=0.001")
    few = ('task.name="digits"', "task.options={}", "steps=3", "peers=3")
    alone, together, simulation = both(*few, *adam)
    assert simulation.choice.is_stacked
    for a, b in zip(alone.peers, together.peers, strict=True):
        assert a.model is not None
        assert b.model is not None
        for name, tensor in a.model.items():
            # adam's step has the size of the rate wherever a gradient is mere rounding
            torch.testing.assert_close(b.model[name], tensor, rtol=1e-3, atol=1e-3)
            assert float((b.model[name] - tensor).abs().mean()) < 1e-5


def test_attention_is_stacked_as_a_whole(tmp_path: Path) -> None:
    """Torch warns, which is an error here, where a part of it must go one peer after the other."""
    (tmp_path / "input.txt").write_text("to be or not to be, " * 600)
    sizes = "task.options={width=8,heads=2,layers=1,length=16}"
    few = ('task.name="char-lm"', sizes, "steps=2", "peers=3", "optimizer.lr=0.001")
    config = parse(TEXT, few)
    alone = Simulation(config, tmp_path, lambda _: None, 0).run()
    simulation = StackedSimulation(config, tmp_path, lambda _: None, stacking="on")
    together = simulation.run()
    assert simulation.choice.is_stacked
    for a, b in zip(alone.peers, together.peers, strict=True):
        assert b.metrics["loss"] == pytest.approx(a.metrics["loss"], rel=1e-4)


Events = list[dict[str, Any]]


def events_of(config: RunConfig, stacked: Any = "off", mean_every: int = 0) -> Events:
    events: Events = []
    simulate(config, None, events.append, mean_every=mean_every, stacked=stacked)
    return events


def events_of_objects(config: RunConfig, mean_every: int = 0) -> Events:
    """Of a run with an object of every kind per peer."""
    events: Events = []
    Simulation(config, None, events.append, mean_every).run()
    return events


def test_those_that_stand_still_say_why() -> None:
    config = parse(TEXT, ['algorithm.name="sgp"', "peers=3"])
    for events in (events_of_objects(config), events_of(config), events_of(config, "on")):
        words = [event["stderr"] for event in events if event["event"] == "peer_exited"]
        assert words == [["stood still: the number of peers is not a power of two"]] * 3


@pytest.mark.parametrize("stacked", ["on", "off"])
def test_the_same_events_are_told_and_evaluations_are_equal(stacked: Any) -> None:
    config = parse(TEXT, ["evaluation.every=5"])
    alone = events_of_objects(config, 4)
    together = events_of(config, stacked, 4)

    def place(event: dict[str, Any]) -> tuple[object, ...]:
        return tuple(str(event.get(key)) for key in ("event", "peer", "step", "models_counted"))

    assert sorted(map(place, alone)) == sorted(map(place, together))
    measured = [
        {place(e): e["metrics"] for e in events if "metrics" in e} for events in (alone, together)
    ]
    for where, metrics in measured[0].items():
        assert measured[1][where] == pytest.approx(metrics)


@pytest.mark.parametrize(
    ("overrides", "replays"),
    [
        ((), True),
        (DOUBLE, True),
        (('algorithm.fallback="counts"', "algorithm.local_steps=2"), True),
        (('algorithm.name="d2"', 'topology.graph="ring"', "algorithm.momentum=0.9"), True),
        (('algorithm.name="dpsgd-qgm"', 'topology.graph="star"'), True),
        ((*ADAPTIVE, "algorithm.local_steps=2"), True),
        ((*ADAPTIVE, LOSSES), False),
        (('algorithm.name="gradient-tracking"', 'topology.graph="ring"'), True),
        (('algorithm.name="sgp"', "peers=8"), True),
        (("task.options.gradient_noise=0.5",), True),
        (('task.name="digits"', "task.options={}", "steps=10", "peers=3"), True),
        (('task.name="digits"', "task.options={}", 'transport.wire_format="bfloat16"'), True),
        ((*DOUBLE, LOSSES), False),
        (("faults.slow={peer-1=2.5}", 'faults.loss="silent"', LOSSES, "steps=9"), False),
        (('algorithm.name="adpsgd"', "steps=8"), False),
    ],
    ids=str,
)
def test_a_deterministic_run_is_the_run_bit_for_bit(
    overrides: tuple[str, ...], *, replays: bool
) -> None:
    alone, together, simulation = both("deterministic=true", "steps=12", *overrides)
    assert not simulation.choice.is_stacked
    assert_same(alone, together, 0)
    assert (simulation.swarm.replayed > 0) == replays
    for a, b in zip(alone.peers, together.peers, strict=True):
        assert (a.losses, a.metrics) == (b.losses, b.metrics)


@pytest.mark.parametrize("deterministic", ["true", "false"])
@pytest.mark.parametrize("fallback", ["previous", "counts"])
def test_plans_repeat_while_counts_still_grow(fallback: str, deterministic: str) -> None:
    """On a chain of 16 counts settle after 15 steps, of which hardly any need state machines."""
    overrides = (
        "peers=16",
        "steps=20",
        f'algorithm.fallback="{fallback}"',
        f"deterministic={deterministic}",
    )
    alone, together, simulation = both(*overrides)
    assert_same(alone, together, 0 if deterministic == "true" else 1e-9)
    assert simulation.swarm.replayed >= 14
    config = parse(TEXT, overrides)
    counted: list[dict[Any, Any]] = [
        {
            (event["peer"], event["step"]): event["models_counted"]
            for event in events
            if event["event"] == "step"
        }
        for events in (events_of_objects(config), events_of(config, "on"))
    ]
    assert counted[0] == counted[1]
    assert len(set(counted[0].values())) > 5


def test_a_rate_that_changes_once_counts_have_settled_is_waited_for() -> None:
    alone, together, simulation = both("peers=16", "optimizer.relay_lr_correction=true")
    assert_same(alone, together, 1e-9)
    assert 0 < simulation.swarm.replayed < 24 - 15


def test_what_cannot_be_stacked_keeps_one_object_per_peer() -> None:
    config = parse(TEXT, ['faults.crash=[{peer="peer-1", at_step=3}]'])
    assert not is_wanted(config, "auto")
    with pytest.raises(ConfigError, match="--stacked"):
        simulate(config, None, lambda _: None, stacked="on")


def test_peers_that_train_one_by_one_are_recorded_where_steps_may_repeat() -> None:
    """Of the same bits; the other runs keep an object of every kind per peer."""
    config = parse(TEXT)
    alone = Simulation(config, None, lambda _: None, 0).run()
    assert_same(alone, simulate(config, None, lambda _: None), 0)
    assert is_better_recorded(config)
    crash = 'faults.crash=[{peer="peer-1", at_step=3}]'
    for disturbed in (LOSSES, "faults.slow={peer-1=2.5}", 'algorithm.name="swarmsgd"', crash):
        assert not is_better_recorded(parse(TEXT, [disturbed]))


def test_auto_stacks_wherever_it_is_possible() -> None:
    config = parse(TEXT)
    assert [is_wanted(config, stacked) for stacked in ("auto", "on", "off")] == [True, True, False]


@pytest.mark.parametrize("events_of_run", [partial(events_of, stacked="on"), events_of_objects])
def test_large_runs_tell_every_kth_step_and_the_last(
    monkeypatch: pytest.MonkeyPatch, events_of_run: Callable[[RunConfig], Events]
) -> None:
    monkeypatch.setattr(telling, "STEP_EVENTS", 6 * 24 // 5)
    events = events_of_run(parse(TEXT))
    told = [event["step"] for event in events if event["event"] == "step"]
    assert sorted(set(told)) == [0, 6, 12, 18, 23]
    assert len(told) == 6 * 5


def calls_of(run: Callable[[], object]) -> int:
    """How many functions of the product are called in it: the same on any machine."""
    count = 0

    def profile(frame: FrameType, event: str, argument: object) -> None:  # noqa: ARG001
        nonlocal count
        count += event == "call" and PRODUCT in frame.f_code.co_filename

    sys.setprofile(profile)
    try:
        run()
    finally:
        sys.setprofile(None)
    return count


def calls_per_step(run: Callable[[RunConfig], object], peers: int) -> float:
    """Beyond what a run takes whatever its length."""
    calls = []
    for steps in (20, 40):
        text = (f"peers={peers}", f"steps={steps}", 'topology.graph="binary-tree"')
        calls.append(calls_of(partial(run, parse(TEXT, text))))
    return (calls[1] - calls[0]) / 20


def test_a_replayed_step_takes_no_work_for_each_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telling, "STEP_EVENTS", 1)  # no events but those of the ends
    few, many = (calls_per_step(partial(events_of, stacked="on"), peers) for peers in (8, 24))
    assert many == pytest.approx(few, abs=1)
    assert many < 50


def test_a_step_of_a_peer_takes_little_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telling, "STEP_EVENTS", 1)
    assert calls_per_step(events_of, 16) / 16 < 30
    assert calls_per_step(events_of_objects, 16) / 16 < 440
