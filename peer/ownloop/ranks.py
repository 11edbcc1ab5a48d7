"""Several processes of `torch.distributed` that train one model together, as one peer.

What belongs here: rank 0 is the peer; after each optimizer step it tells the other ranks what came
of it, and they take up the model that it has then. Gradients are the program's to average over the
ranks, as DistributedDataParallel does, so that all take the same optimizer steps in between.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, distributed, nn

from peer.ownloop.session import OwnLoop, require_turn
from peer.parts import PeerOptions
from peer.training.program import Evaluate, ProgramModel, check_program
from peer.training.trainer import make_deterministic
from relayswarm.config import RunConfig
from relayswarm.errors import ConfigError, RelayswarmError
from relayswarm.task import Site

T = TypeVar("T")

LEADER = 0


def join(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    options: PeerOptions,
    evaluate: Evaluate | None = None,
    scaler: torch.amp.GradScaler | None = None,
) -> Loop:
    """The place of this process in a swarm: that of a peer, or a part of one."""
    if not distributed.is_available() or not distributed.is_initialized():
        _refuse_unknown_ranks()
        return OwnLoop(model, optimizer, options, evaluate, scaler)
    if isinstance(model, nn.parallel.DistributedDataParallel):
        model = model.module  # as other peers name its tensors, and evaluate it
    if distributed.get_world_size() == 1:
        return OwnLoop(model, optimizer, options, evaluate, scaler)
    if distributed.get_rank() == LEADER:
        return LeadingLoop(model, optimizer, options, evaluate, scaler)
    return FollowingLoop(model, optimizer, scaler)


@dataclass(frozen=True)
class _Joined:
    """What the other ranks have to know of joining."""

    config: RunConfig
    site: Site
    peer_id: str
    step: int
    optimizer_state: Mapping[str, Any]
    scaler_state: Mapping[str, Any]


@dataclass(frozen=True)
class _News:
    """What came of an optimizer step."""

    is_exchanged: bool  # the model
    step: int
    finished: bool


class LeadingLoop(OwnLoop):
    """Rank 0. What goes wrong here is raised by all ranks."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        options: PeerOptions,
        evaluate: Evaluate | None,
        scaler: torch.amp.GradScaler | None,
    ) -> None:
        try:
            super().__init__(model, optimizer, options, evaluate, scaler)
            try:
                _check(self.config)
            except ConfigError:
                self.close()
                raise
        except Exception as error:
            _fail(error)
            raise
        state, scale = optimizer.state_dict(), scaler.state_dict() if scaler is not None else {}
        _tell(_Joined(self.config, self.site, self.peer_id, self.step_number, state, scale))
        _broadcast_whole(self.model)

    def exchange(self, loss: float | Tensor | None = None) -> bool:
        try:
            is_exchanged = super().exchange(loss)
        except Exception as error:
            _fail(error)
            raise
        _tell(_News(is_exchanged, self.step_number, self.finished))
        if is_exchanged:
            _broadcast(self.model)
        return is_exchanged


class FollowingLoop:
    """A rank other than 0: it joins nothing, and hears from rank 0. As `OwnLoop` otherwise."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler | None,
    ) -> None:
        joined = _hear(_Joined)
        check_program(model, optimizer, scaler)
        self._joined = joined
        self._is_closed = False
        self.step_number, self.finished = joined.step, False
        self.model = ProgramModel(joined.config, joined.site, model, optimizer)
        if joined.config.deterministic:
            make_deterministic()
        optimizer.load_state_dict(dict(joined.optimizer_state))
        if scaler is not None and joined.scaler_state:
            scaler.load_state_dict(dict(joined.scaler_state))
        _broadcast_whole(self.model)

    @property
    def config(self) -> RunConfig:
        return self._joined.config

    @property
    def site(self) -> Site:
        return self._joined.site

    @property
    def peer_id(self) -> str:
        return self._joined.peer_id

    def means(self) -> Mapping[str, float]:
        """Only rank 0 knows them."""
        return {}

    def require_turn(self) -> None:
        require_turn(self.step_number, left=self._is_closed, finished=self.finished)

    def exchange(self, loss: float | Tensor | None = None) -> bool:  # noqa: ARG002
        """Wait for what rank 0 says, and take up its model if it is another now."""
        self.require_turn()
        news = _hear(_News)
        self.step_number, self.finished = news.step, news.finished
        if news.is_exchanged:
            self.model.check_views()
            _broadcast(self.model)
        return news.is_exchanged

    def close(self) -> None:
        """There is nothing to leave."""
        self._is_closed = True


Loop: TypeAlias = OwnLoop | FollowingLoop


def _refuse_unknown_ranks() -> None:
    """Each of them would be a peer of its own."""
    size = os.environ.get("WORLD_SIZE", "1")
    if distributed.is_available() and distributed.is_torchelastic_launched() and size != "1":
        problem = "this is one of several processes of torchrun, and cannot reach the others"
        remedy = "call torch.distributed.init_process_group() before joining"
        raise ConfigError("WORLD_SIZE", size, problem, remedy)


def _check(config: RunConfig) -> None:
    if config.optimizer.relay_lr_correction:
        problem = "is not told to the other ranks of a peer, which would take steps of other length"
        remedy = "set it to false in the coordinator's run config, or give each process a peer"
        raise ConfigError("optimizer.relay_lr_correction", True, problem, remedy)


def _broadcast(model: ProgramModel) -> None:
    """All ranks have rank 0's model from here on."""
    distributed.broadcast(model.flat.vector, LEADER)


def _broadcast_whole(model: ProgramModel) -> None:
    """Also what stays with this peer, as it is at joining."""
    _broadcast(model)
    for tensor in model.flat.local_tensors().values():
        distributed.broadcast(tensor, LEADER)


def _tell(what: object) -> None:
    # Pickled by torch: between the processes of one program, never from a peer.
    distributed.broadcast_object_list([what], LEADER)


def _fail(error: Exception) -> None:
    known = isinstance(error, RelayswarmError)
    _tell(error if known else RelayswarmError(f"{type(error).__name__} at rank {LEADER}: {error}"))


def _hear(kind: type[T]) -> T:
    heard: list[Any] = [None]
    distributed.broadcast_object_list(heard, LEADER)
    if isinstance(heard[0], RelayswarmError):
        raise heard[0]
    assert isinstance(heard[0], kind), "all ranks make the same calls"
    return heard[0]
