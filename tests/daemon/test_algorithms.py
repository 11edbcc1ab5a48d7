"""Every algorithm as daemons: over gRPC they end with the simulator's models, bit for bit.

Methods with steps repeat by themselves (`test_bit_identity` shows them under losses, too). Pairwise
ones draw their partners as time goes by; they repeat where a script says who averages with whom.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch

from peer.algorithms import ALGORITHMS
from peer.algorithms.pairwise import Pairwise
from peer.progress import SWARM_FIELDS
from peer.simulator.run import simulate

COMMON = (
    "deterministic=true",
    "transport.deadline_s=100",
    "transport.linger_s=100",
    "task.name=quadratics",
    "task.options={gradient_noise=0.5}",
    "peers=4",
    "steps=8",
    "topology.graph=complete",
    "evaluation.every=3",
)

SCRIPT = [
    ["peer-0", "peer-1", 2],
    ["peer-2", "peer-3", 1],
    ["peer-1", "peer-2", 3],
    ["peer-3", "peer-0", 1],
    ["peer-0", "peer-2", 2],
    ["peer-0", "peer-2", 1],
    ["peer-3", "peer-1", 4],
    ["peer-2", "peer-1", 1],
]

SCRIPTED = f"algorithm.options.script={SCRIPT}"

PAIRWISE = sorted(name for name, (kind, _) in ALGORITHMS.items() if issubclass(kind, Pairwise))

SETTINGS: Mapping[str, tuple[str, ...]] = {
    **{name: (SCRIPTED,) if name in PAIRWISE else () for name in ALGORITHMS},
    "swarmsgd blocking": (SCRIPTED, "algorithm.blocking=true"),
    "swarmsgd in bfloat16": (SCRIPTED, "transport.wire_format=bfloat16"),
    "swarmsgd on the lattice": (SCRIPTED, "algorithm.quantize=lattice"),
    "swarmsgd blocking, on the lattice": (
        SCRIPTED,
        "algorithm.blocking=true",
        "algorithm.quantize=lattice",
    ),
}

COMPARED = ("step", "loss", "models_counted", "swarm_size", "missed", "late")


@pytest.mark.parametrize("name", PAIRWISE)
def test_nobody_waits_for_peers_that_have_finished(daemons: Callable[..., Any], name: str) -> None:
    """Without a script peers end at different times; calls to those that have are refused, or find
    nobody, and the deadline of a call is never met."""
    swarm = daemons(*COMMON[1:], "steps=30", f"algorithm.name={name}")
    swarm.finish()
    waits = [event["wait_s"] for peer in swarm.peers.values() for event in peer.events("step")]
    assert len(waits) == 4 * 30
    assert max(waits) < 50


@pytest.mark.parametrize("case", SETTINGS)
def test_daemons_end_as_in_the_simulator(daemons: Callable[..., Any], case: str) -> None:
    assert_as_simulated(daemons(*COMMON, f"algorithm.name={case.split()[0]}", *SETTINGS[case]))


def assert_as_simulated(swarm: Any) -> None:
    """Run the simulator with the swarm's config, and compare."""
    steps = defaultdict(list)

    def note(event: Mapping[str, Any]) -> None:
        if event["event"] == "step":
            steps[event["peer"]].append([event[key] for key in COMPARED])

    simulated = simulate(swarm.config, None, note)
    finished = swarm.finish()
    for peer in simulated.peers:
        said = swarm.peers[peer.id].events("step")
        assert [[event[key] for key in COMPARED] for event in said] == steps[peer.id] != []
        assert finished[peer.id]["messages_missed"] == peer.messages_missed == 0
        assert finished[peer.id]["metrics"] == peer.metrics
        last = swarm.swarm_metrics(peer.id)[swarm.config.steps]
        assert {key: last[key] for key in SWARM_FIELDS} == peer.swarm_metrics
        assert last["peers"] == 4
        (model,), (expected,) = swarm.model(peer.id).values(), peer.model.values()
        assert torch.equal(model, expected), f"the model of {peer.id} differs"
