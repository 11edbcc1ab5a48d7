"""What a run cost, against what can be counted by hand."""

from __future__ import annotations

import pytest

CASES = {  # models that a peer sends in a step: mean over 4 peers, and the busiest
    "chain": ("algorithm.name=relaysgd", "topology.graph=chain", 6 / 4, 2.0),
    "star": ("algorithm.name=relaysgd", "topology.graph=star", 6 / 4, 3.0),
    "ring": ("algorithm.name=d2", "topology.graph=ring", 2.0, 2.0),
    "exponential": ("algorithm.name=sgp", "topology.graph=ring", 2.0, 2.0),
}


@pytest.mark.parametrize("name", CASES)
def test_models_per_step(play, name: str) -> None:
    *overrides, mean, largest = CASES[name]
    cost = play("", *overrides).cost
    assert cost["models_sent_per_step"] == {"mean": mean, "largest": largest}
    assert cost["models_received_per_step"] == {"mean": mean, "largest": largest}
    assert cost["bytes_sent"] == mean * 4 * 30 * 3 * 8  # peers, steps, coordinates, float64
    assert cost["gradient_evaluations"] == 4 * 30


ROUNDS = {
    "relaysgd waits for its neighbours": ("algorithm.name=relaysgd", 1.0),
    "sgp for two partners in turn": ("algorithm.name=sgp", 2.0),
    "with overlap nobody waits": ("algorithm.overlap=true", 0.0),
}


@pytest.mark.parametrize("name", ROUNDS)
def test_message_rounds_on_the_critical_path(play, name: str) -> None:
    override, rounds = ROUNDS[name]
    assert play("", override).cost["message_rounds_per_step"] == rounds


def test_a_call_and_its_answer_are_two_rounds(play) -> None:
    """Two peers that call each other only: no call is refused, but for those that cross."""
    rounds = play("", "algorithm.name=swarmsgd", "peers=2").cost["message_rounds_per_step"]
    assert 2.0 <= rounds < 4.0


def test_half_a_model_on_each_of_two_trees_counts_as_half(play) -> None:
    trees = ("topology.tree=double-binary-trees", "topology.graph=complete")
    cost = play("", *trees, "task.options.dimension=4", "peers=8").cost
    assert cost["models_sent_per_step"]["largest"] == 2.0
    assert cost["models_sent_per_step"]["mean"] == 14 / 8


def test_local_steps_are_gradients_and_seconds(play) -> None:
    cost = play("", "algorithm.local_steps=3").cost
    assert cost["gradient_evaluations"] == 4 * 30 * 3
    assert cost["virtual_seconds"] == pytest.approx(90, abs=0.1)


def test_the_mean_model_is_measured_once_everyone_has_done_the_step(play) -> None:
    run = play("", mean_every=10)
    measured = run.of("mean_model")
    assert [event["step"] for event in measured] == [10, 20, 30]
    values = [event["metrics"]["suboptimality"] for event in measured]
    assert values == sorted(values, reverse=True)
    assert values[-1] <= sum(run.suboptimality) / 4  # Jensen


def test_peers_evaluate_when_they_are_told_to(play) -> None:
    run = play("", "evaluation.every=10")
    assert [e["step"] for e in run.of("evaluation", "peer-2")] == [10, 20]


def test_messages_on_the_lattice_by_their_bits(play) -> None:
    """On each of 6 directed edges the first two go in full precision; every other is written with 8
    bits, and some again with more."""
    run = play("", "transport.wire_format=lattice")
    cost, peers = run.cost, run.outcome.peers
    tries = cost["messages_by_bits"]
    assert tries["0"] >= 2 * 6
    assert tries["8"] == 28 * 6
    block = 12
    per_message = {"0": 3 * 8, "8": block + 3, "16": block + 2 * 3}
    assert cost["bytes_sent"] == sum(per_message[bits] * count for bits, count in tries.items())
    retried = sum(peer.messages_retried for peer in peers)
    assert retried > 0
    assert sum(tries.values()) == sum(peer.messages_sent for peer in peers) + retried
    assert play("").cost["messages_by_bits"] == {}
