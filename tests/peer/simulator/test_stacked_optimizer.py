"""The stacked optimizers are torch's, row by row."""

from __future__ import annotations

import pytest
import torch

from peer.simulator.stacked_optimizer import StackedOptimizer
from peer.training.optimizer import (
    OptimizerSettings,
    build,
    gather_movement,
    quasi_global_adam_step,
    quasi_global_step,
    resolve,
)
from relayswarm.config import OptimizerConfig

PEERS, SIZE = 3, 4


def settings(**chosen: object) -> OptimizerSettings:
    return resolve(OptimizerConfig.model_validate(chosen), {})


@pytest.mark.parametrize(
    "chosen",
    [
        {"name": "sgd"},
        {"name": "sgd", "weight_decay": 0.1},
        {"name": "sgd", "momentum": 0.9},
        {"name": "sgd", "momentum": 0.8, "nesterov": True, "weight_decay": 0.01},
        {"name": "adam"},
        {"name": "adam", "weight_decay": 0.1, "betas": (0.8, 0.95)},
        {"name": "adamw", "weight_decay": 0.1},
    ],
    ids=str,
)
def test_rows_are_what_separate_optimizers_make_of_them(chosen: dict[str, object]) -> None:
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(PEERS, SIZE, generator=generator, dtype=torch.float64)
    alone = [torch.nn.Parameter(row.clone()) for row in start]
    optimizers = [build(settings(**chosen), [parameter]) for parameter in alone]
    stacked, models = StackedOptimizer(settings(**chosen), PEERS, start[0]), start.clone()
    for step, peers in enumerate([None, None, [0, 2], [1], None]):
        chosen_peers = None if peers is None else torch.tensor(peers)
        numbers = range(PEERS) if peers is None else peers
        gradients = torch.randn(len(numbers), SIZE, generator=generator, dtype=torch.float64)
        rate = 0.1 / (1 + step)
        part = models if chosen_peers is None else models[chosen_peers]
        stacked.step(part, gradients, rate, chosen_peers)
        if chosen_peers is not None:
            models[chosen_peers] = part
        for k, gradient in zip(numbers, gradients, strict=True):
            alone[k].grad = gradient
            optimizers[k].param_groups[0]["lr"] = rate
            optimizers[k].step()
    expected = torch.stack([parameter.detach() for parameter in alone])
    torch.testing.assert_close(models, expected, rtol=1e-12, atol=1e-12)


def test_starting_over_forgets_everything() -> None:
    like = torch.zeros(SIZE, dtype=torch.float64)
    gradients = torch.ones(PEERS, SIZE, dtype=torch.float64)
    for name in ("sgd", "adam"):
        momentum = {"momentum": 0.9} if name == "sgd" else {}
        used = StackedOptimizer(settings(name=name, **momentum), PEERS, like)
        used.step(torch.zeros_like(gradients), 5 * gradients, 0.1)
        used.start_over()
        moved = torch.zeros_like(gradients)
        used.step(moved, gradients, 0.1)
        fresh = StackedOptimizer(settings(name=name, **momentum), PEERS, like)
        expected = torch.zeros_like(gradients)
        fresh.step(expected, gradients, 0.1)
        assert torch.equal(moved, expected)


def test_quasi_global_momentum_is_read_and_left_alone() -> None:
    models = torch.arange(PEERS * SIZE, dtype=torch.float64).view(PEERS, SIZE)
    momenta, gradients = models.flip(0).clone(), models.cos()
    alone = [torch.nn.Parameter(row.clone()) for row in models]
    for parameter, gradient in zip(alone, gradients, strict=True):
        parameter.grad = gradient.clone()
    kept = momenta.clone()
    quasi_global_step(alone, list(momenta), 0.1, 0.7, 0.01)
    plain = settings(name="sgd", weight_decay=0.01)
    stacked = models.clone()
    StackedOptimizer(plain, PEERS, models[0]).quasi_global_step(
        stacked, gradients, 0.1, momenta, 0.7
    )
    torch.testing.assert_close(stacked, torch.stack([p.detach() for p in alone]))
    assert torch.equal(momenta, kept)


def test_quasi_global_adam_is_that_of_separate_optimizers() -> None:
    """Two local steps each time, by all peers and by some."""
    adam = settings(name="adam", weight_decay=0.1, betas=(0.8, 0.95))
    generator = torch.Generator().manual_seed(1)
    models = torch.randn(PEERS, SIZE, generator=generator, dtype=torch.float64)
    alone = [torch.nn.Parameter(row.clone()) for row in models]
    optimizers = [build(adam, [parameter]) for parameter in alone]
    stacked = StackedOptimizer(adam, PEERS, models[0])
    for peers in ([0, 1, 2], [0, 2], [1], [0, 1, 2]):
        chosen = None if len(peers) == PEERS else torch.tensor(peers)
        movements = torch.randn(len(peers), SIZE, generator=generator, dtype=torch.float64)
        stacked.gather_movements(movements, chosen)
        for k, movement in zip(peers, movements, strict=True):
            gather_movement(optimizers[k], [alone[k]], [movement], adam.betas)
        for _ in range(2):
            gradients = torch.randn(len(peers), SIZE, generator=generator, dtype=torch.float64)
            part = models[peers]
            stacked.quasi_global_adam_step(part, gradients, 0.1, chosen)
            models[peers] = part
            for k, gradient in zip(peers, gradients, strict=True):
                alone[k].grad = gradient
                quasi_global_adam_step(optimizers[k], [alone[k]], 0.1, adam.betas, 0.1)
    expected = torch.stack([parameter.detach() for parameter in alone])
    torch.testing.assert_close(models, expected, rtol=1e-12, atol=1e-12)
