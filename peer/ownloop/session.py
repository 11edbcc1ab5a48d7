"""A program as a peer: its loop trains in its own thread, all else of a peer runs beside it.

What belongs here: joining, taking turns and leaving, as the program sees it. `relayswarm.Swarm` is
the public face of this.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

from peer.local_training import LocalTraining, Training
from peer.ownloop.training import LoopTraining
from peer.ownloop.turns import Turns
from peer.parts import Learning, PeerOptions
from peer.service import Peer
from peer.training.learner import Learner
from peer.training.program import Evaluate, ProgramModel, check_program
from peer.training.trainer import make_deterministic, make_site
from relayswarm.config import OWN_LOOP, OptimizerConfig, RunConfig
from relayswarm.errors import ConfigError, JoinError
from relayswarm.task import Site

log = logging.getLogger("relayswarm.peer")

_taken: weakref.WeakSet[nn.Module] = weakref.WeakSet()  # models that are in a swarm
_guard = threading.Lock()

ELSEWHERE = frozenset({"relay_lr_correction"})
"""Of the settings of `[optimizer]` those that are not about the optimizer itself."""


class OwnLoop:
    """A program's place in a swarm. Used from one thread, but for `close`.

    `training` and `model` are there once the program has joined, which is when this is made: that
    waits for all peers that the run needs.
    """

    training: LoopTraining

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        options: PeerOptions,
        evaluate: Evaluate | None = None,
        scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        check_program(model, optimizer, scaler)
        _take(model)
        self._module = model
        self._turns = Turns()
        self._is_closed = False
        self._late: BaseException | None = None  # what went wrong after the last step
        learner = partial(
            _learner, model=model, optimizer=optimizer, evaluate=evaluate, scaler=scaler
        )
        try:
            self._peer = Peer(options, Learning(learner, self._make_training))
        except BaseException:
            _give_back(model)
            raise
        # A daemon: a program that ends without a word shall not hang.
        self._thread = threading.Thread(target=self._live, name="relayswarm", daemon=True)
        self._thread.start()
        try:
            self._turns.wait()
            if not hasattr(self, "training"):
                raise JoinError(
                    "the run is done here, and its model is model.safetensors in the folder of "
                    "state; give another folder for another run"
                )
            if self.model.config.deterministic:
                make_deterministic()  # torch has a number of threads for each thread
        except BaseException:
            self.close()
            raise

    @property
    def model(self) -> ProgramModel:
        return self.training.model

    @property
    def finished(self) -> bool:
        """Whether all steps of the run are done."""
        return self._turns.is_over

    def means(self) -> Mapping[str, float]:
        """The swarm's newest means of what peers measured."""
        known = self._peer.daemon.swarm.known if self._peer.daemon else None
        named = known.sums.items() if known else ()
        return {name: float(s.mean) for name, s in named if s.mean is not None}

    @property
    def peer_id(self) -> str:
        assert self._peer.daemon is not None, "it has joined"
        return self._peer.daemon.peer

    @property
    def step_number(self) -> int:
        return self.training.steps_done

    @property
    def config(self) -> RunConfig:
        return self.model.config

    @property
    def site(self) -> Site:
        return self.model.site

    def exchange(self, loss: float | Tensor | None = None) -> bool:
        """An optimizer step has been taken. True if it was the last before an exchange, which is
        done then. Raises ConfigError if there is no step to take."""
        self.require_turn()
        return self.training.stepped(loss)

    def require_turn(self) -> None:
        """Raise ConfigError if the program has left, or all steps are done."""
        require_turn(self.step_number, left=self._is_closed, finished=self.finished)

    def close(self) -> None:
        """Leave, or once all steps are done, serve neighbours to the end. Raises what went wrong
        in that."""
        if self._is_closed:
            return
        self._is_closed = True
        has_finished = self._turns.is_over
        if not has_finished:
            self._peer.stop()
            self._turns.leave()
        self._thread.join()
        if hasattr(self, "training"):
            self.training.detach()
        _give_back(self._module)
        if has_finished and self._late is not None:
            raise self._late

    def _live(self) -> None:
        failure: BaseException | None = None
        try:
            self._peer.live()
        except BaseException as error:  # noqa: BLE001
            failure = error
        if not self._turns.end(failure) and failure is not None:
            self._late = failure
            log.warning("this peer did not end well: %s", failure)

    def _make_training(self, of: Training) -> LocalTraining:
        self.training = LoopTraining(self._turns, of)
        return self.training


def require_turn(step: int, *, left: bool, finished: bool) -> None:
    """Raise ConfigError if a program has left, or all steps are done."""
    if left:
        raise ConfigError("swarm.step", step, "this program has left the swarm", "join again")
    if finished:
        problem, remedy = (
            "all steps of the run are done",
            "end the loop when swarm.finished is true",
        )
        raise ConfigError("swarm.step", step, problem, remedy)


def _learner(
    config: RunConfig,
    shard: int,
    options: PeerOptions,
    *,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    evaluate: Evaluate | None,
    scaler: torch.amp.GradScaler | None,
) -> Learner:
    _check(config)
    site = make_site(config, shard, options.data_dir, options.peer_id)
    return ProgramModel(config, site, model, optimizer, evaluate, scaler)


def _check(config: RunConfig) -> None:
    """Raise ConfigError unless the run is one for programs with a loop of their own."""
    if config.task.name != OWN_LOOP:
        raise ConfigError(
            "task.name",
            config.task.name,
            "peers of this run train on a task, and this program has a loop of its own",
            f"start the coordinator with --set task.name={OWN_LOOP}",
        )
    for name in OptimizerConfig.model_fields.keys() - ELSEWHERE:
        _require_unset(f"optimizer.{name}", getattr(config.optimizer, name))
    _require_unset("algorithm.momentum", config.algorithm.momentum)
    if config.data.forward:
        problem = "a program trains, and does not only forward"
        remedy = "remove it from the coordinator's run config"
        raise ConfigError("data.forward", list(config.data.forward), problem, remedy)


def _require_unset(field: str, value: object) -> None:
    if value is not None:
        problem = "would be of no effect: programs have an optimizer of their own"
        raise ConfigError(field, value, problem, "remove it from the coordinator's run config")


def _take(model: nn.Module) -> None:
    with _guard:
        if model in _taken:
            raise ConfigError(
                "model",
                type(model).__name__,
                "is in a swarm already",
                "close that one first, or give a model of its own",
            )
        _taken.add(model)


def _give_back(model: nn.Module) -> None:
    with _guard:
        _taken.discard(model)
