"""Clipped and noised movements, and what they give away in sum."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from peer.report import Comparison, summarize
from peer.simulator.run import simulate
from peer.training.movement import Movement, Spent, movement_of
from relayswarm.config import PrivacyConfig, parse
from relayswarm.errors import ConfigError


def released(config: PrivacyConfig, moved: torch.Tensor, seed: int | None = None) -> torch.Tensor:
    """What is seen of a movement that starts at 3."""
    before = torch.full_like(moved, 3.0)
    live = before + moved
    seeds = None if seed is None else lambda step: seed + step
    Movement(config, seeds).release(before.clone(), live, 0)
    return live - before


def test_a_long_movement_is_scaled_to_the_norm_and_a_short_one_stays() -> None:
    moved = torch.tensor([3.0, 4.0], dtype=torch.float64)
    assert torch.allclose(released(PrivacyConfig(clip=1), moved), moved / 5)
    assert torch.allclose(released(PrivacyConfig(clip=6), moved), moved)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_movement_that_is_not_finite_counts_as_none(bad: float) -> None:
    assert released(PrivacyConfig(clip=1), torch.tensor([bad, 1.0])).tolist() == [0, 0]


def test_the_noise_is_normal_with_the_multiple_of_the_norm() -> None:
    config = PrivacyConfig(clip=0.5, noise_multiplier=3)
    seen = released(config, torch.zeros(40_000, dtype=torch.float64))
    assert abs(float(seen.std()) - 1.5) < 0.03
    assert abs(float(seen.mean())) < 0.04
    assert not torch.equal(seen, released(config, torch.zeros(40_000, dtype=torch.float64)))


def test_in_a_deterministic_run_the_noise_follows_from_the_seed_and_counts_as_none() -> None:
    config, zero = PrivacyConfig(clip=1, noise_multiplier=1), torch.zeros(8)
    assert torch.equal(released(config, zero, seed=4), released(config, zero, seed=4))
    movement = Movement(config, lambda step: step)
    movement.release(zero.clone(), zero.clone(), 0)
    assert movement.spent.epsilon(1e-5) == math.inf


def test_noise_without_a_clipping_norm_is_refused() -> None:
    with pytest.raises(ConfigError, match="noise_multiplier is times clip, which is unset"):
        parse("[privacy]\nnoise_multiplier = 1")


def test_a_model_with_travelling_buffers_is_refused_by_their_names() -> None:
    assert movement_of(PrivacyConfig(), ("bn.mean",), None) is None
    with pytest.raises(ConfigError, match=r"privacy.clip = 1.*bn\.mean.*GroupNorm"):
        movement_of(PrivacyConfig(clip=1), ("bn.mean",), None)


def gaussian_delta(epsilon: float, mu: float) -> float:
    """Exact, of one Gaussian mechanism of sensitivity mu standard deviations (Balle and Wang, 2018,
    theorem 8)."""

    def phi(x: float) -> float:
        return math.erfc(-x / math.sqrt(2)) / 2

    return phi(mu / 2 - epsilon / mu) - math.exp(epsilon) * phi(-mu / 2 - epsilon / mu)


@pytest.mark.parametrize(("multiplier", "steps"), [(1.0, 1), (4.0, 10), (20.0, 400), (60.0, 400)])
def test_epsilon_holds_and_is_not_far_from_the_exact_one(multiplier: float, steps: int) -> None:
    """Many Gaussian mechanisms are one with the squares of their sensitivities added up."""
    spent, delta = Spent(), 1e-5
    for _ in range(steps):
        spent.add(multiplier)
    mu = math.sqrt(steps) / multiplier
    epsilon = spent.epsilon(delta)
    assert gaussian_delta(epsilon, mu) <= delta
    assert gaussian_delta(0.8 * epsilon, mu) > delta
    assert math.isclose(spent.of_replacement(delta), Spent(1, 4 * mu**2).epsilon(delta))


def test_nothing_released_costs_nothing_and_without_noise_there_is_no_bound() -> None:
    spent = Spent()
    assert spent.epsilon(1e-5) == 0
    spent.add(0.0)
    assert spent.epsilon(1e-5) == math.inf


def test_what_was_spent_outlives_the_process(tmp_path: Path) -> None:
    file = tmp_path / "privacy.json"
    first = Spent()
    first.keep(file)
    first.add(2.0)
    again = Spent()
    again.keep(file)
    again.add(2.0)
    assert json.loads(file.read_text())["releases"] == 2
    assert math.isclose(again.epsilon(1e-5), Spent(2, 0.5).epsilon(1e-5))
    file.write_text("{}")
    with pytest.raises(ConfigError, match="does not say what was released"):
        Spent().keep(file)
    file.unlink()
    file.mkdir()  # as one that another user has written, it cannot be read
    with pytest.raises(ConfigError, match="does not say what was released"):
        Spent().keep(file)


def test_a_trainer_moves_no_further_than_the_norm(rig: Any) -> None:
    class Plain(rig.Task):
        def model(self) -> nn.Module:
            return nn.Linear(3, 1)

    clipped, free = rig.trainer("privacy.clip=0.001", task=Plain()), rig.trainer(task=Plain())
    start = clipped.flat.vector.clone()
    for trainer in (clipped, free):
        trainer.train(0)
    assert float((free.flat.vector - start).norm()) > 0.002
    assert math.isclose(float((clipped.flat.vector - start).norm()), 0.001, rel_tol=1e-3)
    assert clipped.privacy_spent()["releases"] == 1
    assert clipped.privacy_spent()["epsilon"] is None
    assert free.privacy_spent() is None
    with pytest.raises(ConfigError, match=r"privacy\.clip"):
        rig.trainer("privacy.clip=1")  # it has BatchNorm


@pytest.mark.parametrize(("settings", "epsilon"), [((), True), (("deterministic=true",), False)])
def test_a_report_tells_the_epsilon_of_each_site(settings: tuple[str, ...], epsilon: bool) -> None:
    """As many steps as the run has; None where the noise follows from the seed."""
    privacy = ("privacy.clip=1", "privacy.noise_multiplier=2", "privacy.delta=1e-4")
    run = ("peers=3", "steps=5", "task.name=quadratics", "topology.graph=chain")
    outcome = simulate(parse("", [*run, *privacy, *settings]), None, lambda _: None)
    told = Spent(5, 5 / 2**2)
    for peer in summarize(outcome, Comparison())["peers"]:
        assert peer["privacy"] == {
            "releases": 5,
            "delta": 1e-4,
            "epsilon": told.epsilon(1e-4) if epsilon else None,
            "epsilon_of_replacement": told.of_replacement(1e-4) if epsilon else None,
        }
