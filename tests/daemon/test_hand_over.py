"""The end of a run in one model: the same file everywhere, whatever happens on the way."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from peer.simulator.run import simulate
from peer.transport.read_model import read_model
from tests.daemon.test_observing import peer_value, scrape

COMMON = ("task.name=quadratics", "stop.common_model=true", "evaluation.every=5")
CHAIN = ("topology.graph=chain", "peers=3", "coordinator.lease_s=2")


def handed_over(swarm: Any, peer: str) -> dict[str, Any]:
    folder: Path = swarm.directory / peer
    said: dict[str, Any] = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    digest = sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert said["model_sha256"] == digest
    return said


def test_all_hand_over_one_model_which_is_the_simulators(daemons: Callable[..., Any]) -> None:
    swarm = daemons(*COMMON, "peers=4", "steps=12", "deterministic=true")
    finished = swarm.finish()
    said = {peer: handed_over(swarm, peer) for peer in swarm.peers}
    assert len({one["model_sha256"] for one in said.values()}) == 1
    for peer, one in said.items():
        assert one["is_common"]
        assert one["participants"] == sorted(swarm.peers)
        assert (one["missing"], one["step"], one["peer"]) == ([], 12, peer)
        assert one["metrics"]["loss"] == finished[peer]["metrics"]["loss"]
        assert one["swarm_metrics"]["step"] == 12
        assert one["best_swarm_metrics"]["step"] in (5, 10, 12)
        told = {site: (e["step"], e["metrics"]) for site, e in one["sites"].items()}
        assert told == {site: (12, finished[site]["metrics"]) for site in sorted(swarm.peers)}
    simulated = simulate(swarm.config, None, lambda _: None)
    for outcome in simulated.peers:
        assert outcome.model is not None
        assert torch.equal(outcome.model["x"], swarm.model(outcome.id)["x"])


def sites(swarm: Any, peer: str) -> dict[str, Any]:
    """Whom this peer has heard of at its end, and what they measured of the model."""
    return {site: one["metrics"] for site, one in handed_over(swarm, peer)["sites"].items()}


def test_what_a_site_keeps_is_in_no_sites_file(daemons: Callable[..., Any], tmp_path: Path) -> None:
    swarm = daemons(*COMMON, *CHAIN, "steps=6", start=False)
    law = tmp_path / "site.toml"
    law.write_text("[allow]\nmetrics = []\n", encoding="utf-8")
    for peer, flags in {"peer-0": (), "peer-1": ("--site", str(law)), "peer-2": ()}.items():
        swarm.add(peer, *flags)
    finished = {peer: event["metrics"] for peer, event in swarm.finish().items()}
    for peer in swarm.peers:
        assert sites(swarm, peer) == finished | {"peer-1": {}}
        assert handed_over(swarm, peer)["metrics"] == finished[peer]


def test_without_a_coordinator_each_hands_over_what_it_measured_itself(
    daemons: Callable[..., Any],
) -> None:
    swarm = daemons(*COMMON, *CHAIN, "steps=20", "faults.delay_s=0.01")
    swarm.until_step(2)
    swarm.coordinator.send(signal.SIGKILL)
    finished = swarm.finish()
    assert len({handed_over(swarm, peer)["model_sha256"] for peer in swarm.peers}) == 1
    for peer in swarm.peers:
        assert handed_over(swarm, peer)["is_common"]
        assert sites(swarm, peer) == {peer: finished[peer]["metrics"]}


def test_messages_lost_in_the_end_are_sent_again(daemons: Callable[..., Any]) -> None:
    """All of the first try, in both directions, without a word."""
    lossy = ("faults.drop=0.6", "faults.loss=silent", "transport.deadline_s=0.5")
    swarm = daemons(*COMMON, *CHAIN, *lossy, "steps=6")
    swarm.finish()
    assert len({handed_over(swarm, peer)["model_sha256"] for peer in swarm.peers}) == 1
    assert all(handed_over(swarm, peer)["is_common"] for peer in swarm.peers)


def test_who_dies_before_the_end_is_named_and_too_few_are_no_success(
    daemons: Callable[..., Any],
) -> None:
    settings = ("stop.min_peers=3", "faults.delay_s=0.05", "transport.deadline_s=1")
    swarm = daemons(*COMMON, *CHAIN, *settings, "steps=40")
    swarm.until_step(5)
    swarm.peers["peer-2"].send(signal.SIGKILL)
    left = ("peer-0", "peer-1")
    assert [swarm.peers[peer].exit_code() for peer in left] == [4, 4]
    said = [handed_over(swarm, peer) for peer in left]
    assert said[0]["model_sha256"] == said[1]["model_sha256"]
    assert [one["participants"] for one in said] == [["peer-0", "peer-1"]] * 2
    assert [one["missing"] for one in said] == [["peer-2"]] * 2
    for peer in left:
        assert "stop.min_peers = 3: only 2 peers' models" in swarm.peers[peer].log
        assert "peer-2" in swarm.peers[peer].log


def test_who_dies_in_the_end_itself_is_left_out(daemons: Callable[..., Any]) -> None:
    """The others have done their last step, and wait for the model of peer-2 until the coordinator
    has given it up."""
    slow = ("faults.slow={peer-2 = 1000000}", "transport.deadline_s=0.5")  # in its first step
    swarm = daemons(*COMMON, *CHAIN, *slow, "steps=4")
    swarm.until_step(3, "peer-2")
    swarm.peers["peer-2"].send(signal.SIGKILL)
    left = ("peer-0", "peer-1")
    assert [swarm.peers[peer].exit_code() for peer in left] == [0, 0]
    said = [handed_over(swarm, peer) for peer in left]
    assert said[0]["model_sha256"] == said[1]["model_sha256"]
    assert [one["missing"] for one in said] == [["peer-2"]] * 2


def received(process: Any) -> float:
    """How many messages this peer has received."""
    address = process.until("peer_started")["metrics_address"]
    return peer_value(scrape(address), "messages_received_total")


def test_one_that_dies_between_its_sum_and_the_mean_keeps_nobody_from_it(
    daemons: Callable[..., Any],
) -> None:
    """In a chain of four: what peer-2 has passed on is in the mean, and who is behind peer-2 gets
    that in the next epoch. The last round waits for peer-0, which is stopped."""
    chain = ("topology.graph=chain", "peers=4", "coordinator.lease_s=10", "stop.min_peers=3")
    swarm = daemons(*COMMON, *chain, "steps=6", "faults.delay_s=0.03", "transport.deadline_s=0.5")
    swarm.until_step(2)
    swarm.peers["peer-0"].send(signal.SIGSTOP)
    swarm.until_step(5, "peer-0")
    steps = swarm.steps("peer-1").values()
    used = sum(2 - step["missed"] for step in steps)  # what comes beyond is the sum of peer-2
    swarm.poll(lambda: received(swarm.peers["peer-1"]) > used, "the sum has been passed on")
    swarm.peers["peer-2"].send(signal.SIGKILL)
    swarm.peers["peer-0"].send(signal.SIGCONT)
    left = ("peer-0", "peer-1", "peer-3")
    assert [swarm.peers[peer].exit_code() for peer in left] == [0, 0, 0]
    said = [handed_over(swarm, peer) for peer in left]
    assert all(one["is_common"] for one in said)
    assert len({one["model_sha256"] for one in said}) == 1
    assert len({(*one["participants"], *one["missing"]) for one in said}) == 1


def test_one_that_is_ten_times_slower_is_in_it(daemons: Callable[..., Any]) -> None:
    slow = ("faults.slow={peer-2 = 10}", "transport.deadline_s=0.5")
    swarm = daemons(*COMMON, *CHAIN, *slow, "steps=20")
    swarm.finish()
    said = [handed_over(swarm, peer) for peer in swarm.peers]
    assert len({one["model_sha256"] for one in said}) == 1
    assert all(one["participants"] == ["peer-0", "peer-1", "peer-2"] for one in said)


def test_a_finished_peer_comes_back_as_finished_and_serves(daemons: Callable[..., Any]) -> None:
    swarm = daemons(*COMMON, *CHAIN, "steps=6")
    swarm.finish()
    before = handed_over(swarm, "peer-1")
    again = swarm.add("peer-1", "--stay")
    address = again.until("peer_started")["address"]
    again.until("state", lambda event: event["state"] == "finished")
    model = read_model(address)
    assert model.step == 6
    assert torch.equal(model.vector, swarm.model("peer-1")["x"])
    assert handed_over(swarm, "peer-1") == before
    again.send(signal.SIGTERM)
    assert again.exit_code() == 0
    assert swarm.add("peer-1").exit_code() == 0  # without --stay there is nothing to be done
    assert not swarm.peers["peer-1"].events("step")


def test_a_run_that_gets_no_better_ends_at_one_step_everywhere(daemons: Callable[..., Any]) -> None:
    """The rate is so small that nothing is learnt."""
    stop = ("stop.metric=loss", "stop.patience=2", "optimizer.lr=1e-300")
    swarm = daemons(*COMMON, *CHAIN, *stop, "steps=5000", "faults.delay_s=0.02")
    finished = swarm.finish()
    step = swarm.coordinator.until("stop")["step"]
    assert 15 < step < 5000
    assert {event["steps"] for event in finished.values()} == {step}
    assert len({handed_over(swarm, peer)["model_sha256"] for peer in swarm.peers}) == 1
    last = [handed_over(swarm, peer)["swarm_metrics"] for peer in swarm.peers]
    assert all(one["step"] == step and one["peers"] == 3 for one in last)
