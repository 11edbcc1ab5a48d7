"""What a peer offers to go on from, and what it makes of a checkpoint that does not fit."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from coordinator.trees import Tree
from peer.algorithms.core import LIVE, Algorithm, Kind, Message, NewView, Received, Trained, View
from peer.checkpoints import CORE, Checkpoints
from peer.config import build_algorithm
from peer.metrics import PeerMetrics
from peer.registers import Registers
from peer.simulator.exact import views
from peer.tasks.registry import load_task
from peer.training import checkpoint
from peer.training.checkpoint import Checkpoint
from peer.training.trainer import Trainer, make_site
from relayswarm import config as run_config
from relayswarm.errors import ConfigError

SETTINGS = ("task.name=quadratics", "deterministic=true", "checkpoint.every=1", "peers=2")
LAYOUT = 77


class Peer:
    """One of two, as far as checkpoints are concerned."""

    def __init__(self, folder: Path, *settings: str, shard: int = 0) -> None:
        self.config = run_config.parse("", [*SETTINGS, *settings])
        self.trainer = Trainer(
            load_task(self.config.task), self.config, make_site(self.config, shard)
        )
        self.checkpoints = Checkpoints(folder, self.trainer, PeerMetrics(), "peer-0")
        self.algorithm: Algorithm = build_algorithm(self.config)
        flat = self.trainer.flat
        self.registers = Registers(flat.vector, self.algorithm.registers, flat.parameters_end)

    def live(self) -> None:
        """Train a step, get the other's message, and save before the next one."""
        view = view_of(0)
        self.algorithm.handle(NewView(view), 0.0)
        self.algorithm.handle(Trained(0, 0.1), 0.0)
        head = self.algorithm.head(1)  # type: ignore[attr-defined]
        head = replace(head, sender="peer-1", step=0, kind=Kind.RELAY)
        vector = torch.full_like(self.trainer.flat.vector, 3.0)
        self.algorithm.handle(Received(head, (Message(head, 0, vector),)), 0.0)
        for tensor in self.registers.tensors.values():
            tensor.fill_(2.0)
        kept = self.checkpoints.capture(1, self.algorithm, self.registers, view)
        assert (kept is not None) is bool(self.algorithm.state())
        self.checkpoints.save_if_due(1, kept)

    def resume(self) -> None:
        self.checkpoints.resume(replace(view_of(1), resumes=True), self.algorithm, self.registers)


def view_of(step: int) -> View:
    (view, _) = views([Tree(2, ((0, 1),))], effective_step=step)
    return replace(view, layout=LAYOUT)


def test_what_was_kept_comes_back(tmp_path: Path) -> None:
    Peer(tmp_path).live()
    again = Peer(tmp_path)
    assert again.checkpoints.resume_points() == {(1, LAYOUT)}
    again.resume()
    assert all((tensor == 2.0).all() for tensor in again.registers.tensors.values())
    assert set(again.registers.tensors) == {LIVE, "previous"}
    again.algorithm.handle(NewView(replace(view_of(1), resumes=True)), 0.0)
    state = again.algorithm.state()
    assert state is not None
    assert state.values == {"step": 1, "epoch_start": 0, "method": {}}
    (received,) = state.received
    assert (received.head.sender, received.head.step, received.head.count) == ("peer-1", 0, 1)
    assert (received.messages[0].payload == 3.0).all()


@pytest.mark.parametrize(
    "setting",
    [
        "deterministic=false",
        "algorithm.overlap=true",
        "transport.wire_format=lattice",
        "algorithm.name=swarmsgd",
    ],
)
def test_nothing_is_offered_where_more_is_under_way_than_is_kept(
    tmp_path: Path, setting: str
) -> None:
    peer = Peer(tmp_path, setting)
    peer.algorithm.handle(NewView(view_of(0)), 0.0)
    assert peer.checkpoints.capture(1, peer.algorithm, peer.registers, view_of(0)) is None
    peer.checkpoints.save_if_due(1)
    assert peer.checkpoints.resume_points() == frozenset()


def test_a_checkpoint_of_other_data_is_not_offered(tmp_path: Path) -> None:
    Peer(tmp_path).live()
    assert Peer(tmp_path, shard=1).checkpoints.resume_points() == frozenset()


def without(key: str) -> Callable[[dict[str, Any]], None]:
    return lambda core: core.pop(key)


def with_head(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda core: core["received"][0].update(changes)


@pytest.mark.parametrize(
    "spoil",
    [
        without("state"),
        without("received"),
        with_head(sender="peer-9"),
        with_head(kind="letter"),
        with_head(sections=2),
        lambda core: core.update(received=[{}]),
        lambda core: core.update(state={"step": "x", "epoch_start": 0, "method": {}}),
        lambda core: core.update(state={"step": 1, "epoch_start": 5, "method": {}}),
    ],
)
def test_what_does_not_fit_is_an_error(
    tmp_path: Path, spoil: Callable[[dict[str, Any]], None]
) -> None:
    Peer(tmp_path).live()
    (found,) = checkpoint.load_all(tmp_path)
    values = deepcopy(dict(found.values))
    spoil(values[CORE])
    checkpoint.save(tmp_path, replace(found, values=values), kept=1)
    with pytest.raises(
        ConfigError, match=r"checkpoint = 'step 1': what it has .*start the run anew"
    ):
        Peer(tmp_path).resume()


def test_a_checkpoint_that_has_gone_is_an_error(tmp_path: Path) -> None:
    Peer(tmp_path).live()
    peer = Peer(tmp_path)
    for path in tmp_path.iterdir():
        path.unlink()
    with pytest.raises(ConfigError, match="has no checkpoint of step 1 any more"):
        peer.resume()


def test_as_many_are_kept_as_peers_can_be_steps_apart(tmp_path: Path) -> None:
    peer = Peer(tmp_path)
    peer.algorithm.handle(NewView(view_of(0)), 0.0)
    far = replace(view_of(0), diameter=4)
    for step in range(9):
        kept = peer.checkpoints.capture(step, peer.algorithm, peer.registers, far)
        peer.checkpoints.save_if_due(step, kept)
    assert len(checkpoint.load_all(tmp_path)) == 5
    peer.checkpoints.save(9, last=True)
    found: list[Checkpoint] = checkpoint.load_all(tmp_path)
    assert [one.step for one in found] == [4, 5, 6, 7, 8, 9]
