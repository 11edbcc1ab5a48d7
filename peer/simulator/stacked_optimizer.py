"""torch's SGD, Adam and AdamW on models stacked as [n, d], with a state of its own for each peer.

All of them work element by element, so the rows are what separate optimizers would make of them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from peer.training.optimizer import EPSILON, OptimizerSettings


class StackedOptimizer:
    """Optimizer state of `peers` models of the shape, dtype and device of `like`, shape (d,)."""

    def __init__(self, settings: OptimizerSettings, peers: int, like: Tensor) -> None:
        self._settings = settings
        self._first = like.new_zeros((peers, like.numel()))  # momentum
        is_adam = settings.name != "sgd"
        self._second = like.new_zeros((peers, like.numel())) if is_adam else None
        self._steps = like.new_zeros((peers, 1), dtype=torch.float64)

    def start_over(self) -> None:
        """As at first."""
        for tensor in (self._first, self._second, self._steps):
            if tensor is not None:
                tensor.zero_()

    def step(
        self, models: Tensor, gradients: Tensor, lr: float, chosen: Tensor | None = None
    ) -> None:
        """Update models (k, d) in place; `chosen` are the peers they belong to (None: all)."""
        if self._settings.name == "sgd":
            self._sgd(models, gradients, lr, chosen)
        else:
            self._adam(models, gradients, lr, chosen)

    def gather_movements(self, movements: Tensor, chosen: Tensor | None = None) -> None:
        """Of quasi-global Adam; see `peer.training.optimizer.gather_movement`. Shape (k, d)."""
        norms = torch.linalg.vector_norm(movements, dim=1, keepdim=True)
        self._advance(movements / (norms + EPSILON), chosen)

    def quasi_global_adam_step(
        self, models: Tensor, gradients: Tensor, lr: float, chosen: Tensor | None = None
    ) -> None:
        """See `peer.training.optimizer.quasi_global_adam_step`."""
        g = self._decayed(models, gradients)
        steps, first, second = (_rows(state, chosen).clone() for state in self._moments)
        self._follow(models, steps, *self._with(g, first, second), lr)

    def quasi_global_step(
        self, models: Tensor, gradients: Tensor, lr: float, momenta: Tensor, beta: float
    ) -> None:
        """Add u = -lr (g + b (b m + g)); see `peer.training.optimizer.quasi_global_step`."""
        g = self._decayed(models, gradients)
        models.add_((momenta * beta + g) * beta + g, alpha=-lr)

    def _sgd(self, models: Tensor, gradients: Tensor, lr: float, chosen: Tensor | None) -> None:
        beta = self._settings.momentum
        update = self._decayed(models, gradients)
        if beta:
            momentum = _rows(self._first, chosen).mul_(beta).add_(update)
            _put(self._first, chosen, momentum)
            update = update + beta * momentum if self._settings.nesterov else momentum
        models.add_(update, alpha=-lr)

    def _adam(self, models: Tensor, gradients: Tensor, lr: float, chosen: Tensor | None) -> None:
        if self._settings.name == "adamw":
            models.mul_(1 - lr * self._settings.weight_decay)
            g = gradients
        else:
            g = self._decayed(models, gradients)
        self._follow(models, *self._advance(g, chosen), lr)

    @property
    def _moments(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of Adam, after the count of their steps."""
        assert self._second is not None
        return self._steps, self._first, self._second

    def _advance(self, g: Tensor, chosen: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Take `g`, shape (k, d), into the moments of the chosen, which are returned."""
        steps, first, second = (_rows(state, chosen) for state in self._moments)
        rows = steps.add_(1), *self._with(g, first, second)
        for state, changed in zip(self._moments, rows, strict=True):
            _put(state, chosen, changed)
        return rows

    def _with(self, g: Tensor, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Both moments with `g`, in place."""
        beta_1, beta_2 = self._settings.betas
        return first.lerp_(g, 1 - beta_1), second.mul_(beta_2).addcmul_(g, g, value=1 - beta_2)

    def _follow(
        self, models: Tensor, steps: Tensor, first: Tensor, second: Tensor, lr: float
    ) -> None:
        """Move by the moments of so many steps."""
        beta_1, beta_2 = self._settings.betas
        rate = (lr / (1 - beta_1**steps)).to(models.dtype)
        scale = (1 - beta_2**steps).sqrt().to(models.dtype)
        models.sub_(rate * first / (second.sqrt() / scale + EPSILON))

    def _decayed(self, models: Tensor, gradients: Tensor) -> Tensor:
        decay = self._settings.weight_decay
        return gradients.add(models, alpha=decay) if decay else gradients


def _rows(state: Tensor, chosen: Tensor | None) -> Tensor:
    """The chosen rows: the state itself if all are."""
    return state if chosen is None else state[chosen]


def _put(state: Tensor, chosen: Tensor | None, rows: Tensor) -> None:
    if chosen is not None:
        state[chosen] = rows
