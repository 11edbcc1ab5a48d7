"""Local steps that a program takes in its own thread, in the place of a training thread."""

from __future__ import annotations

import math
import time
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from peer.algorithms.core import Train
from peer.checkpoints import Captured
from peer.local_training import LocalTraining, OnTrained, Training
from peer.ownloop.turns import Turns
from peer.training.learner import TrainResult
from peer.training.program import ProgramModel
from relayswarm.errors import ConfigError
from relayswarm.task import Measured


@dataclass(slots=True)
class _Turn:
    """The local steps of one step: `wanted` of them, or fewer if time runs out before."""

    effect: Train
    then: OnTrained
    wanted: int
    ends_at: float
    started: float
    losses: list[float | Tensor] = field(default_factory=list)
    taken: int = 0


class LoopTraining(LocalTraining):
    """Gives the program its turns. `stepped` is called by the program, the rest by the daemon."""

    def __init__(self, turns: Turns, of: Training) -> None:
        super().__init__(of)
        learner = of.learner
        assert isinstance(learner, ProgramModel)
        self.model = learner
        self._turns = turns
        self._turn: _Turn | None = None
        self._rates: list[float | Tensor] = []  # before they were scaled
        self._hooks: list[RemovableHandle] = []
        if learner.config.optimizer.relay_lr_correction:
            before = learner.optimizer.register_step_pre_hook(self._scale_rates)
            after = learner.optimizer.register_step_post_hook(self._restore_rates)
            self._hooks = [before, after]

    # --- the daemon's threads ----------------------------------------------------------------

    def start(
        self, effect: Train, momentum: Tensor | None, captured: Captured | None, then: OnTrained
    ) -> None:
        if momentum is not None:
            raise ConfigError(
                "algorithm.name",
                self.model.config.algorithm.name,
                "its momentum would take the place of the program's optimizer",
                "choose another algorithm for a loop of your own",
            )

        def begin() -> None:
            self._prepare(effect.step, captured)
            now = time.perf_counter()
            wanted = effect.local_steps or range(self.model.config.algorithm.local_steps)
            ends_at = now + self._budget_s(effect) if effect.budget_s else math.inf
            self._turn = _Turn(effect, then, len(wanted), ends_at, now)

        self._turns.give(begin)

    def close(self) -> None:
        self._hurry.set()
        self._turns.await_peers()

    def release(self) -> None:
        self._turns.end()

    def evaluate_last(self, step: int) -> dict[str, Measured]:
        try:
            return self._turns.ask(lambda: self.evaluate(step))
        except CancelledError:  # the program has gone
            return {}

    # --- the program's thread ----------------------------------------------------------------

    def stepped(self, loss: float | Tensor | None) -> bool:
        """An optimizer step is taken. After the last of a step this waits for the exchange, and
        returns when the next turn begins, or with the end: then true."""
        turn = self._turn
        assert turn is not None, "the program has a turn"
        turn.taken += 1
        turn.losses.append(math.nan if loss is None else _detached(loss))
        if turn.taken < turn.wanted and not self._is_out_of_time(turn):
            return False
        self.model.check_views()
        result = self._dawdle(self._result(turn))
        self._conclude(turn.effect.step)
        self._turn = None
        done: Future[TrainResult] = Future()
        done.set_result(result)
        self.steps_done = turn.effect.step + 1
        self._turns.hand_over()
        turn.then(done)
        self._turns.wait()
        return True

    def detach(self) -> None:
        """Leave the optimizer as it was."""
        for hook in self._hooks:
            hook.remove()

    def _scale_rates(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        """For one optimizer step; schedulers see the rates as they set them."""
        self._rates = [group["lr"] for group in optimizer.param_groups]
        scale = float(self._turn.effect.lr_scale) if self._turn else 1.0
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * scale

    def _restore_rates(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        for group, rate in zip(optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate

    def _is_out_of_time(self, turn: _Turn) -> bool:
        if turn.ends_at == math.inf:
            return False
        self._settle()
        return time.perf_counter() >= turn.ends_at or self._hurry.is_set()

    def _settle(self) -> None:
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)

    def _result(self, turn: _Turn) -> TrainResult:
        loss = sum(map(float, turn.losses)) / len(turn.losses)
        lr = self.model.lr * float(turn.effect.lr_scale)
        seconds = time.perf_counter() - turn.started
        return TrainResult(loss if math.isfinite(loss) else math.nan, lr, seconds, turn.taken)


def _detached(loss: float | Tensor) -> float | Tensor:
    return loss.detach() if isinstance(loss, Tensor) else loss
