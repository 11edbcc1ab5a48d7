"""A swarm that was stopped as a whole, or died as a whole, goes on as if it had never stopped.

With `deterministic = true` every later loss and every parameter has the bits of a run without a
pause, which is the simulator's (`test_bit_identity.py`).
"""

from __future__ import annotations

import signal
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch

from peer.simulator.run import simulate
from tests.daemon.test_bit_identity import COMPARED

EVERY, STOPPED_AT, STEPS = 5, 12, 30
PATIENT = (
    *("deterministic=true", "transport.deadline_s=100", "transport.linger_s=100"),
    *("peers=4", f"steps={STEPS}", f"checkpoint.every={EVERY}", "evaluation.every=7"),
    "faults.delay_s=0.02",  # a step takes at least this long, so that there is time to stop it
)
DIGITS = (*PATIENT, "task.name=digits", "data.batch_size=8", "data.alpha=0.5")
QUADRATICS = (*PATIENT, "task.name=quadratics", "topology.graph=ring")

STOPPED = {
    "chain, momentum": (signal.SIGTERM, (*DIGITS, "topology.graph=chain")),
    "two trees, adam, rate corrected": (
        signal.SIGTERM,
        (
            *DIGITS,
            *("topology.graph=complete", "topology.tree=double-binary-trees"),
            *("optimizer.name=adam", "optimizer.lr=0.003", "optimizer.relay_lr_correction=true"),
        ),
    ),
    "killed, star, known losses, bfloat16": (
        signal.SIGKILL,
        (
            *DIGITS,
            *("topology.graph=star", "faults.drop=0.1", "transport.wire_format=bfloat16"),
            "robust.clip=0.5",
        ),
    ),
    "dpsgd-qgm, adam": (
        signal.SIGTERM,
        (*QUADRATICS, "algorithm.name=dpsgd-qgm", "optimizer.name=adam", "faults.drop=0.1"),
    ),
    **{
        name: (signal.SIGTERM, (*QUADRATICS, f"algorithm.name={name}", "faults.drop=0.1"))
        for name in ("d2", "dpsgd-qgm", "gradient-tracking", "relaysgd-grad", "relaysum", "sgp")
    },
}


def stop(swarm: Any, number: signal.Signals) -> None:
    """End all peers, one after the other, and the coordinator, which keeps nothing."""
    swarm.until_step(STOPPED_AT)
    for process in swarm.peers.values():
        process.send(number)
    codes = [process.exit_code() for process in swarm.peers.values()]
    assert codes == [-number if number is signal.SIGKILL else 0] * len(codes)
    swarm.coordinator.send(signal.SIGKILL)
    swarm.coordinator.exit_code()
    swarm.restart_coordinator()


def said(process: Any) -> dict[int, tuple[Any, ...]]:
    """What a peer announced of each step but for times."""
    return {e["step"]: tuple(e[key] for key in COMPARED) for e in process.events("step")}


@pytest.mark.parametrize(("number", "settings"), STOPPED.values(), ids=STOPPED)
def test_a_swarm_that_was_stopped_goes_on_to_the_same_bits(
    daemons: Callable[..., Any], number: signal.Signals, settings: tuple[str, ...]
) -> None:
    swarm = daemons(*settings)
    stop(swarm, number)
    before = {peer: said(process) for peer, process in swarm.peers.items()}
    swarm.add_all("--resume")
    resumed = swarm.coordinator.until("topology")
    assert resumed["effective_step"] % EVERY == 0
    assert STOPPED_AT - EVERY - 3 <= resumed["effective_step"] <= STOPPED_AT + 15
    swarm.finish()

    steps: Mapping[str, dict[int, tuple[Any, ...]]] = defaultdict(dict)

    def note(event: Mapping[str, Any]) -> None:
        if event["event"] == "step":
            steps[event["peer"]][event["step"]] = tuple(event[key] for key in COMPARED)

    for peer in simulate(swarm.config, None, note).peers:
        start = resumed["effective_step"]
        after = said(swarm.peers[peer.id])
        assert after == {k: v for k, v in steps[peer.id].items() if k >= start}, peer.id
        assert {k: before[peer.id][k] for k in range(start)} == {
            k: v for k, v in steps[peer.id].items() if k < start
        }, peer.id
        model = swarm.model(peer.id)
        for name, tensor in peer.model.items():
            assert torch.equal(model[name], tensor), f"{name} of {peer.id} differs"
        log = swarm.peers[peer.id].log
        assert f"going on from step {start} with all others, as if never stopped" in log


def test_with_other_neighbours_than_before_it_starts_over_from_what_was_learnt(
    daemons: Callable[..., Any],
) -> None:
    """One of the peers has lost its disk: nobody goes back for it."""
    swarm = daemons(*PATIENT, "task.name=quadratics", "topology.graph=chain")
    stop(swarm, signal.SIGTERM)
    for peer in swarm.peers:
        swarm.add(peer, *(["--resume"] if peer != "peer-2" else []))
    started = swarm.coordinator.until("topology")
    assert started["effective_step"] > STOPPED_AT
    swarm.finish()
    assert all(min(swarm.steps(peer)) >= started["effective_step"] for peer in swarm.peers)
