"""Fault plans in simulated runs: what they do to messages and peers, and that runs recover."""

from __future__ import annotations

import pytest

from relayswarm.errors import ConfigError


def test_losses_on_one_edge_and_in_listed_steps_are_those_and_no_others(play) -> None:
    edge = "[[faults.edge]]\nsender = 'peer-0'\nreceiver = 'peer-1'\ndrop = 1.0\nsteps = [3, 7]"
    run = play(edge)
    missed = {(e["peer"], e["step"]) for e in run.of("step") if e["missed"]}
    assert missed == {("peer-1", 3), ("peer-1", 7)}


def test_a_duplicate_changes_costs_but_not_models(play) -> None:
    plain, twice = play(""), play("[faults]\nduplicate = 1.0")
    assert twice.suboptimality == plain.suboptimality
    assert twice.cost["bytes_sent"] == 2 * plain.cost["bytes_sent"]
    assert twice.cost["models_received_per_step"] == plain.cost["models_received_per_step"]


@pytest.mark.parametrize("method", ["swarmsgd", "adpsgd"])
def test_of_a_pair_each_call_has_a_fate_of_its_own(play, method: str) -> None:
    """Else who called again after a known loss would lose that too, until its deadline."""
    run = play(f"[algorithm]\nname = '{method}'\n[faults]\ndrop = 0.3", "topology.graph=ring")
    assert not any(e["missed"] for e in run.of("step"))  # a call got through in every step
    assert run.cost["virtual_seconds"] < 31


def test_late_messages_cost_time_and_nothing_else(play) -> None:
    plain, late = play(""), play("[faults]\ndelay_s = 2.0")
    assert late.suboptimality == plain.suboptimality
    assert late.cost["virtual_seconds"] == pytest.approx(plain.cost["virtual_seconds"] + 2.0 * 30)


def test_messages_that_overtake_each_other_harm_nobody(play) -> None:
    run = play(
        "[faults]\nreorder = true\njitter_s = 4.0\nduplicate = 0.5\n[transport]\ndeadline_s = 2.0"
    )
    assert [peer.steps for peer in run.outcome.peers] == [30] * 4
    assert any(e["late"] for e in run.of("step"))
    assert max(run.suboptimality) < 5.0  # from 40 at the start


def test_all_wait_for_a_straggler_when_they_have_the_patience(play) -> None:
    plain, slowed = play(""), play("[faults]\nslow = {peer-2 = 10}")
    assert slowed.suboptimality == plain.suboptimality
    assert slowed.cost["virtual_seconds"] == pytest.approx(300, abs=1)


def test_impatient_peers_finish_before_the_straggler(play) -> None:
    run = play("[faults]\nslow = {peer-3 = 10}\n[transport]\ndeadline_s = 0.5")
    waits = {e["peer"]: e["wait_s"] for e in run.of("step")}
    assert run.cost["virtual_seconds"] < 60  # R6 and R4: neither waits for it, nor is it lost
    assert waits.keys() == {f"peer-{k}" for k in range(4)}
    assert max(run.suboptimality) < 1.0


def test_a_partition_cuts_the_swarm_in_two_for_its_time_only(play) -> None:
    run = play("[[faults.partition]]\nstart_s = 5\nend_s = 15\ngroup = ['peer-0', 'peer-1']")
    counted = [e["models_counted"] for e in run.of("step", "peer-0")]
    assert set(counted[6:14]) == {2}
    assert counted[3] == counted[-1] == 4
    assert run.cost["virtual_seconds"] < 31  # who knows that a peer is out of reach does not wait
    assert max(run.suboptimality) < 1.0  # from 40 at the start


def test_a_crash_gives_the_others_a_new_epoch(play) -> None:
    run = play("[[faults.crash]]\npeer = 'peer-1'\nat_s = 8.5")
    assert [lost.id for lost in run.outcome.lost] == ["peer-1"]
    assert [peer.id for peer in run.outcome.peers] == ["peer-0", "peer-2", "peer-3"]
    epochs = run.outcome.topologies
    assert [epoch["reason"] for epoch in epochs] == ["quorum", "unreachable"]
    assert [epoch["detail"] for epoch in epochs] == ["quorum", "unreachable peer-1"]
    assert list(epochs[1]["members"]) == ["peer-0", "peer-2", "peer-3"]
    assert {e["swarm_size"] for e in run.of("step") if e["step"] > epochs[1]["effective_step"]} == {
        3
    }


def test_a_peer_that_comes_back_takes_over_a_neighbours_model(play) -> None:
    run = play("[[faults.crash]]\npeer = 'peer-1'\nat_step = 5\nrejoin_after_s = 8")
    assert not run.outcome.lost
    assert [epoch["detail"] for epoch in run.outcome.topologies] == [
        "quorum",
        "unreachable peer-1",
        "joined peer-1",
    ]
    steps = [e["step"] for e in run.of("step", "peer-1")]
    assert steps[:5] == list(range(5))
    assert steps[5] > 10  # it did not begin from the start
    assert steps[-1] == 29
    assert len({e["models_counted"] for e in run.of("step") if e["step"] == 29}) == 1
    assert max(run.suboptimality) < 0.1


def test_a_swarm_that_can_never_end_is_given_up(play) -> None:
    """sgp pauses with three peers; leases are renewed for ever, yet the run comes to an end."""
    crash = "[[faults.crash]]\npeer = 'peer-1'\nat_step = 5"
    run = play(crash, "algorithm.name=sgp")
    assert not run.outcome.peers
    assert len(run.outcome.lost) == 4


def test_the_same_plan_and_seed_give_the_same_run(play) -> None:
    plan = "[faults]\ndrop = 0.2\nloss = 'silent'\njitter_s = 0.5\n[transport]\ndeadline_s = 1.0"
    first, second, other = play(plan), play(plan), play(plan, "seed=1")
    assert first.suboptimality == second.suboptimality
    assert first.cost == second.cost
    assert first.cost != other.cost


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("[faults]\nslow = {peer-9 = 2}", "faults.slow"),
        ("[[faults.crash]]\npeer = 'x'\nat_s = 1", "faults.crash.peer"),
        ("[[faults.edge]]\nsender = 'peer-0'\nreceiver = 'peer-4'", "faults.edge.receiver"),
    ],
)
def test_faults_of_peers_that_there_are_not_are_refused(play, text: str, field: str) -> None:
    with pytest.raises(ConfigError, match="no peer of this run") as caught:
        play(text)
    assert caught.value.field == field
