"""With `deterministic = true`, daemons end with the simulator's parameters, bit for bit.

The simulator and the daemons drive the same objects; over gRPC nothing may differ but the time it
takes. What is compared are the files that peers write and every step that they announce.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from peer.algorithms import ALGORITHMS
from peer.algorithms.synchronous import Synchronous
from peer.simulator.run import simulate

PATIENT = (
    "deterministic=true",
    "transport.deadline_s=100",
    "transport.linger_s=100",
    "evaluation.every=7",
)
DIGITS = ("task.name=digits", "data.batch_size=8", "data.alpha=0.5", "steps=20")
QUADRATICS = ("task.name=quadratics", "peers=4", "steps=30")

LEARNING = {
    "chain, momentum": ("peers=4", "topology.graph=chain"),
    "star, adam, local steps": (
        "peers=4",
        "topology.graph=star",
        "optimizer.name=adam",
        "evaluation.before_averaging=true",
        "optimizer.lr=0.003",
        "algorithm.local_steps=2",
    ),
    "spanning tree of a random graph": ("peers=6", "topology.graph=random-regular"),
    "spanning tree, known losses": ("peers=6", "topology.graph=random-regular", "faults.drop=0.1"),
    "double binary trees": (
        "peers=6",
        "topology.graph=complete",
        "topology.tree=double-binary-trees",
    ),
}

RELAYING = {
    "overlap, rate corrected": (
        "topology.graph=chain",
        "algorithm.overlap=true",
        "optimizer.relay_lr_correction=true",
    ),
    "counts, known losses": (
        "topology.graph=star",
        "algorithm.fallback=counts",
        "faults.drop=0.2",
    ),
    "float64 on the wire": ("topology.graph=chain", "transport.wire_format=float64"),
    "bfloat16 on the wire": ("topology.graph=chain", "transport.wire_format=bfloat16"),
    "float16 on the wire, two trees": (
        "topology.graph=complete",
        "topology.tree=double-binary-trees",
        "transport.wire_format=float16",
    ),
    "on the lattice, known losses": (
        "topology.graph=star",
        "transport.wire_format=lattice",
        "faults.drop=0.2",
    ),
    "on the lattice, late, in any order, and twice": (
        "topology.graph=chain",
        "algorithm.overlap=true",
        "transport.wire_format=lattice",
        "faults.jitter_s=0.02",
        "faults.duplicate=0.3",
    ),
    "two trees, known losses": (
        "topology.graph=complete",
        "topology.tree=double-binary-trees",
        "faults.drop=0.2",
    ),
    "late, in any order, and twice": (
        "topology.graph=ring",
        "faults.delay_s=0.002",
        "faults.jitter_s=0.02",
        "faults.duplicate=0.3",
    ),
    "held to a distance, two trees, known losses": (
        "topology.graph=complete",
        "topology.tree=double-binary-trees",
        "robust.clip=0.05",
        "faults.drop=0.2",
    ),
    "sites of different weights, one without data, known losses": (
        "topology.graph=star",
        'data.weighting="declared"',
        "data.weights={peer-0=0.3,peer-1=7.0,peer-2=2.25}",
        'data.forward=["peer-3"]',
        "faults.drop=0.2",
    ),
    "quasi-global Adam, known losses": (
        "algorithm.name=dpsgd-qgm",
        "optimizer.name=adam",
        "topology.graph=ring",
        "algorithm.local_steps=2",
        "faults.drop=0.2",
    ),
    "noisy gradients": ("topology.graph=chain", "task.options={gradient_noise=1.0}"),
}

SYNCHRONOUS = sorted(
    name for name, (kind, _) in ALGORITHMS.items() if issubclass(kind, Synchronous)
)

COMPARED = ("loss", "models_counted", "swarm_size", "missed", "late")
"""What a step's event says apart from times, and from bytes, which count headers too."""


def assert_identical(swarm: Any, data_dir: Path | None = None) -> None:
    """Run the simulator with the swarm's config, and compare."""
    steps: Mapping[str, list[Any]] = defaultdict(list)
    known: Mapping[str, dict[int, Any]] = defaultdict(dict)

    def note(event: Mapping[str, Any]) -> None:
        if event["event"] == "step":
            steps[event["peer"]].append((event["step"], *(event[key] for key in COMPARED)))
        elif event["event"] == "swarm_metrics":
            known[event["peer"]][event["step"]] = event

    simulated = simulate(swarm.config, data_dir, note)
    finished = swarm.finish()
    for peer in simulated.peers:
        assert finished[peer.id]["messages_missed"] == peer.messages_missed, "a deadline was missed"
        assert finished[peer.id]["messages_expected"] == peer.messages_expected
        assert finished[peer.id]["local_steps"] == peer.local_steps
        said = swarm.peers[peer.id].events("step")
        assert [(e["step"], *(e[key] for key in COMPARED)) for e in said] == steps[peer.id]
        assert finished[peer.id]["metrics"] == peer.metrics
        assert swarm.swarm_metrics(peer.id) == known[peer.id]
        due = {*range(7, swarm.config.steps, 7), swarm.config.steps}
        if peer.id not in swarm.config.data.forward:  # which know nothing where a message is lost
            assert known[peer.id].keys() == due
        model = swarm.model(peer.id)
        assert model.keys() == peer.model.keys()
        for name, tensor in peer.model.items():
            assert torch.equal(model[name], tensor), f"{name} of {peer.id} differs"


@pytest.mark.parametrize("settings", LEARNING.values(), ids=LEARNING)
def test_learning_ends_as_in_the_simulator(
    daemons: Callable[..., Any], settings: tuple[str, ...]
) -> None:
    assert_identical(daemons(*PATIENT, *DIGITS, *settings))


def test_a_transformer_on_files_ends_as_in_the_simulator(
    daemons: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "input.txt").write_text("to be or not to be, that is the question:\n" * 110)
    sizes = "task.options={length = 16, width = 16, heads = 2, layers = 1}"
    swarm = daemons(
        *PATIENT, "task.name=char-lm", sizes, "data.batch_size=8", steps=20, peers=3, start=False
    )
    swarm.add_all("--data-dir", str(tmp_path))
    assert_identical(swarm, tmp_path)


@pytest.mark.parametrize("settings", RELAYING.values(), ids=RELAYING)
def test_relaying_ends_as_in_the_simulator(
    daemons: Callable[..., Any], settings: tuple[str, ...]
) -> None:
    assert_identical(daemons(*PATIENT, *QUADRATICS, *settings))


@pytest.mark.parametrize(
    ("tree", "wire_format"),
    [
        ("spanning-tree", "float32"),
        ("double-binary-trees", "float32"),
        ("spanning-tree", "float64"),
        ("spanning-tree", "bfloat16"),
        ("double-binary-trees", "float16"),
        ("double-binary-trees", "lattice"),
    ],
)
def test_models_that_are_still_sent_when_the_next_step_begins_end_as_in_the_simulator(
    daemons: Callable[..., Any],
    install: Callable[[int], Path],
    monkeypatch: pytest.MonkeyPatch,
    tree: str,
    wire_format: str,
) -> None:
    """Above 1 MiB a message is formed while it is sent; what it is formed from moves on."""
    theirs = install(9000)  # 675,010 parameters
    monkeypatch.syspath_prepend(str(theirs))
    edge = "faults.edge=[{sender = 'peer-0', receiver = 'peer-1', delay_s = 0.1}]"
    settings = ("task.name=theirs", "data.batch_size=8", "steps=12", "peers=3", edge)
    graph = ("topology.graph=complete", f"topology.tree={tree}")
    wire = f"transport.wire_format={wire_format}"
    assert_identical(daemons(*PATIENT, *settings, *graph, wire, path=[theirs]))


@pytest.mark.parametrize("name", SYNCHRONOUS)
def test_every_synchronous_method_ends_as_in_the_simulator(
    daemons: Callable[..., Any], name: str
) -> None:
    method = (f"algorithm.name={name}", "topology.graph=ring", "faults.drop=0.1")
    assert_identical(daemons(*PATIENT, *QUADRATICS, *method))


@pytest.mark.parametrize("name", ["allreduce", "d2", "gradient-tracking", "sgp"])
def test_other_methods_end_as_in_the_simulator_on_the_lattice(
    daemons: Callable[..., Any], name: str
) -> None:
    wire = "transport.wire_format=lattice"
    method = (f"algorithm.name={name}", "topology.graph=ring", "faults.drop=0.1", wire)
    assert_identical(daemons(*PATIENT, *QUADRATICS, *method))
