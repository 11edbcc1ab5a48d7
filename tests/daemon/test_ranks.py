"""Peers of several processes each, started by torchrun: one swarm of two such peers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import pytest
import torch
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard

from peer.training.program import check_program
from relayswarm.errors import ConfigError
from tests.conftest import Start, ended

PROGRAM = """
import hashlib, json, sys, torch
from torch import distributed, nn
import relayswarm

distributed.init_process_group("gloo")
rank = distributed.get_rank()

def digest():
    floats = [t for t in model.state_dict().values() if t.is_floating_point()]
    return hashlib.sha256(b"".join(t.numpy().tobytes() for t in floats)).hexdigest()

torch.manual_seed(rank)  # also that ranks begin alike is what joining sees to
model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 1))
if rank == 0:
    torch.manual_seed(7)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
scaler = torch.amp.GradScaler("cpu", init_scale=8.0 * 2**rank)  # that of rank 0 holds
seen = []
try:
    with relayswarm.Swarm(
        model, optimizer, sys.argv[1], scaler=scaler,
        evaluate=lambda model: {"rank": relayswarm.Measured(float(rank), weight=1.0)},
    ) as swarm:
        seen.append([swarm.step_number, digest()])
        parallel = nn.parallel.DistributedDataParallel(model)
        torch.manual_seed(10 * swarm.site.shard + rank)  # each has other data
        x = torch.randn(64, 3)
        y = x.sum(dim=1, keepdim=True)
        optimizer_steps = 0
        while not swarm.finished:
            optimizer.zero_grad()
            loss = (parallel(x) - y).square().mean()
            scaler.scale(loss).backward()
            swarm.step(loss=loss)
            optimizer_steps += 1
            if optimizer_steps % 2 == 0:
                seen.append([swarm.step_number, digest()])
    said = {"peer": swarm.peer_id, "means": swarm.means(), "seen": seen, "loss": float(loss)}
    said["scale"] = scaler.get_scale()
except relayswarm.RelayswarmError as error:
    said = {"error": str(error)}
print(json.dumps({"rank": rank, **said}) + "\\n", end="", flush=True)
distributed.barrier()  # gloo aborts a process whose partner has gone in the middle of a call
distributed.destroy_process_group()
"""

Coordinator = Callable[..., tuple[str, IO[str]]]


@pytest.fixture
def ranks(start: Start, tmp_path: Path) -> Callable[..., list[dict[str, object]]]:
    """Runs peers of two ranks each; returns what each rank says, by peer and rank."""

    def run(address: str, peers: int) -> list[dict[str, object]]:
        (tmp_path / "program.py").write_text(PROGRAM)
        torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
        programs = [start(*torchrun, "program.py", address) for _ in range(peers)]
        lines = "".join(ended(program) for program in programs).splitlines()
        return sorted(map(json.loads, lines), key=lambda one: (one.get("peer", ""), one["rank"]))

    return run


@pytest.mark.timeout(400)  # seven processes import torch, perhaps on a busy machine
def test_all_ranks_of_two_peers_have_one_model(
    coordinator: Coordinator, ranks: Callable[..., list[dict[str, object]]]
) -> None:
    """After each exchange; with all-reduce that is the same model in both peers."""
    settings = ("algorithm.name=allreduce", "algorithm.local_steps=2", "steps=8", "peers=2")
    address, _ = coordinator("task.name=own-loop", *settings)
    said = ranks(address, 2)
    assert [(one["peer"], one["rank"]) for one in said] == [
        ("peer-0", 0),
        ("peer-0", 1),
        ("peer-1", 0),
        ("peer-1", 1),
    ]
    seen = said[0]["seen"]
    assert [step for step, _ in seen] == list(range(9))
    assert len({digest for _, digest in seen}) == 9
    for one in said[1:]:
        assert one["seen"] == seen
    assert [one["means"] for one in said] == [{"rank": 0.0}, {}] * 2  # rank 0 alone measures
    assert [one["scale"] for one in said] == [8.0] * 4


@pytest.mark.timeout(300)
def test_what_rank_0_is_refused_all_ranks_raise(
    coordinator: Coordinator, ranks: Callable[..., list[dict[str, object]]]
) -> None:
    address, _ = coordinator("task.name=own-loop", "optimizer.relay_lr_correction=true", "peers=1")
    first, second = ranks(address, 1)
    assert first["error"] == second["error"]
    assert "optimizer.relay_lr_correction = True: is not told to the other" in first["error"]


@pytest.fixture
def alone() -> Iterator[None]:
    """A group of one process."""
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.usefixtures("alone")
def test_sharded_models_are_refused() -> None:
    mesh = distributed.device_mesh.init_device_mesh("cpu", (1,))
    model = nn.Sequential(nn.Linear(2, 2))
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ConfigError, match=r"model = '0.weight': is sharded .* use DistributedData"):
        check_program(model, optimizer)


def test_ranks_that_cannot_reach_each_other_do_not_join(monkeypatch: pytest.MonkeyPatch) -> None:
    from relayswarm import Swarm

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    model = nn.Linear(1, 1)
    with pytest.raises(ConfigError, match=r"WORLD_SIZE = '2': .* call torch.distributed.init"):
        Swarm(model, torch.optim.SGD(model.parameters(), lr=0.1))
