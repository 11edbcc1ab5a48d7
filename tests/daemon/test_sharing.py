"""Swarms that share a part of the model: what is local stays so, on daemons as in the simulator."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from peer.simulator.run import simulate
from peer.training.checkpoint import load_latest
from relayswarm.config import RunConfig, parse
from relayswarm.errors import ExitCode

TASK = """
import torch
from torch import nn
from relayswarm import Measured, Task, TensorData

BASE = {base}


class Adapter(nn.Module):
    def __init__(self, width, rank):
        super().__init__()
        self.base = nn.Linear(width, width).requires_grad_(False)
        nn.init.normal_(self.base.weight, generator=torch.Generator().manual_seed(BASE))
        self.lora_a = nn.Parameter(torch.randn(rank, width) / width)
        self.lora_b = nn.Parameter(torch.zeros(width, rank))

    def forward(self, x):
        return self.base(x) + x @ self.lora_a.T @ self.lora_b.T


class Sites(Task):
    name = "sites"

    def optimizer_defaults(self):
        return {{"name": "sgd", "lr": 0.02, "momentum": 0.9}}

    def model(self):
        return nn.Sequential(Adapter(8, 2), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))

    def data(self, site):
        x = torch.randn(64, 8, generator=torch.Generator().manual_seed(site.shard)) + site.shard
        return TensorData(x, (x.sum(1) > 8 * site.shard).long() + (x[:, 0] > site.shard).long())

    def loss(self, model, batch):
        x, y = batch
        return nn.functional.cross_entropy(model(x), y)

    def evaluate(self, model, site):
        x, y = self.data(site).tensors
        return {{"loss": Measured(float(self.loss(model, (x, y))), weight=len(x))}}
"""

ADAPTERS = 'share.include=["*lora_*"]'
WITHOUT_HEAD = 'share.exclude=["*.running_*", "3.*"]'
SHARED = {
    ADAPTERS: {"0.lora_a", "0.lora_b"},
    WITHOUT_HEAD: {"0.lora_a", "0.lora_b", "1.weight", "1.bias"},
}
FROZEN = {"0.base.weight", "0.base.bias"}
ELEMENTS = {ADAPTERS: 32, WITHOUT_HEAD: 48, "share.include=['*']": 48 + 16 + 27}

Model = Mapping[str, Tensor]


@pytest.fixture
def task_file(tmp_path: Path) -> Path:
    path = tmp_path / "sites.py"
    path.write_text(TASK.format(base=0))
    return path


def settings(task_file: Path, *more: str, algorithm: str = "allreduce") -> tuple[str, ...]:
    task = ("task.name=sites", f"task.file={str(task_file)!r}", f"algorithm.name={algorithm}")
    run = ("peers=3", "steps=12", "data.batch_size=8", "topology.graph=chain")
    patience = ("transport.deadline_s=100", "transport.linger_s=100", "deterministic=true")
    return (*task, *run, *patience, *more)


def simulated(config: RunConfig, stacked: Any = "off") -> Any:
    return simulate(config, None, lambda _: None, stacked=stacked)


def assert_shared_alone(models: list[Model], shared: set[str]) -> None:
    """What is shared or frozen is equal, and everything else of floats differs."""
    for name, tensor in models[0].items():
        others = [torch.equal(tensor, model[name]) for model in models[1:]]
        if tensor.is_floating_point():
            assert others == [name in shared | FROZEN] * len(others), name


@pytest.mark.parametrize("share", SHARED)
@pytest.mark.parametrize("stacked", ["off", "auto"])
def test_what_is_shared_is_equal_and_the_rest_is_not(
    task_file: Path, share: str, stacked: str
) -> None:
    """An all-reduce is consensus in every step."""
    config = parse("", settings(task_file, share))
    outcome = simulated(config, stacked)
    assert_shared_alone([peer.model for peer in outcome.peers], SHARED[share])


@pytest.mark.parametrize("algorithm", ["relaysgd", "gradient-tracking", "swarmsgd"])
def test_bytes_are_those_of_what_is_shared(task_file: Path, algorithm: str) -> None:
    def sent(share: str) -> int:
        config = parse("", settings(task_file, share, algorithm=algorithm))
        return sum(peer.bytes_sent for peer in simulated(config).peers)

    by_element = {sent(share) / elements for share, elements in ELEMENTS.items()}
    assert len(by_element) == 1


@pytest.mark.parametrize("algorithm", ["relaysgd", "gradient-tracking"])
def test_daemons_end_as_in_the_simulator(
    daemons: Callable[..., Any], task_file: Path, algorithm: str
) -> None:
    given = settings(task_file, WITHOUT_HEAD, "checkpoint.every=5", algorithm=algorithm)
    swarm = daemons(*given, start=False)
    swarm.add_all("--task-file", str(task_file))
    expected = simulated(swarm.config)
    finished = swarm.finish()
    for peer in expected.peers:
        assert finished[peer.id]["metrics"] == peer.metrics
        model = swarm.model(peer.id)
        assert model.keys() == peer.model.keys()
        for name, tensor in peer.model.items():
            assert torch.equal(model[name], tensor), f"{name} of {peer.id} differs"
        kept = load_latest(swarm.directory / peer.id)
        assert kept is not None
        assert kept.tensors["vector"].numel() == ELEMENTS[WITHOUT_HEAD]
        for name in ("3.weight", "3.bias", "1.running_mean"):
            assert torch.equal(kept.tensors[f"local/{name}"], peer.model[name])


def test_a_peer_with_another_base_is_refused(
    daemons: Callable[..., Any], task_file: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.py"
    other.write_text(TASK.format(base=1))
    swarm = daemons(*settings(task_file, ADAPTERS), start=False)
    swarm.add("peer-0", "--task-file", str(task_file)).until("waiting")
    late = swarm.add("peer-1", "--task-file", str(other))
    assert late.exit_code() == ExitCode.COULD_NOT_JOIN
    assert "alike but for the values of their frozen parameters; load the same base" in late.log
