from __future__ import annotations

import math

import pytest
import torch

from peer.baseline import (
    SMALL_MODEL,
    AllShards,
    centralized_trainer,
    evaluate_mean,
    first_trainer,
    fitting_threads,
    has_full_gradients,
    mean_model,
    train_centralized,
)
from peer.tasks.quadratics import Quadratics
from peer.training.trainer import Trainer
from relayswarm import config as run_config
from relayswarm.errors import ConfigError


def quadratics(steps: int = 5, **options: float) -> Trainer:
    text = f"peers = 4\nsteps = {steps}\n[task]\nname = 'quadratics'\n"
    extra = [f"task.options.{key}={value}" for key, value in options.items()]
    return first_trainer(run_config.parse(text, extra), None, "cpu")


def digits(*overrides: str) -> Trainer:
    return first_trainer(run_config.parse("peers = 4\nsteps = 3", overrides), None, "cpu")


def test_the_mean_model_is_taken_in_double_precision() -> None:
    big = torch.tensor([2.0**24], dtype=torch.float32)  # + 1 is lost in float32
    models = [{"w": big}, {"w": torch.tensor([1.0])}, {"w": torch.tensor([1.0])}]
    mean = mean_model(models)["w"]
    assert mean.dtype == torch.float32
    assert mean.item() == torch.tensor((2.0**24 + 2) / 3, dtype=torch.float32).item()


def test_integers_stay_those_of_the_first_model() -> None:
    models = [{"n": torch.tensor([3])}, {"n": torch.tensor([5])}]
    assert mean_model(models)["n"].tolist() == [3]


def test_the_mean_model_is_measured_as_a_peer_measures_its_own() -> None:
    first = quadratics()
    task, site = first.task, first.site
    assert isinstance(task, Quadratics)
    x_star = torch.from_numpy(task.problem(site).x_star)
    apart = torch.ones_like(x_star)
    metrics = evaluate_mean(first, [{"x": x_star + apart}, {"x": x_star - apart}])
    assert metrics["suboptimality"] == pytest.approx(0, abs=1e-24)


def test_models_of_another_task_are_refused() -> None:
    with pytest.raises(ConfigError, match="is missing"):
        evaluate_mean(quadratics(), [{"y": torch.zeros(10)}])


def test_full_gradients_of_all_shards_average_to_that_of_the_mean() -> None:
    first = quadratics()
    assert has_full_gradients(first)
    trainer = centralized_trainer(first, 128)
    assert isinstance(trainer.task, AllShards)
    assert isinstance(first.task, Quadratics)
    expected = first.task.problem(first.site).gradients(trainer.flat.vector.numpy()).mean(axis=0)
    trainer.train(0)
    moved = -trainer.flat.vector / trainer.lr(0)  # from 0, by gradient descent
    torch.testing.assert_close(moved, torch.from_numpy(expected))


def test_centralized_quadratics_reach_the_optimum_of_the_mean() -> None:
    baseline = train_centralized(quadratics(steps=400, gradient_noise=0), 128)
    assert baseline.metrics["suboptimality"] == pytest.approx(0, abs=1e-15)


def test_centralized_training_sees_all_samples_in_one_shard() -> None:
    first = digits("data.alpha=0.1")
    trainer = centralized_trainer(first, 128)
    shards = [
        first.task.data(first.site.__class__(shard=k, shards=4, alpha=0.1, min_samples=16))
        for k in range(4)
    ]
    assert not has_full_gradients(first)
    assert trainer.samples == sum(map(len, shards))
    assert trainer.config.data.batch_size == 128


def test_centralized_training_is_reproducible_and_heard_of() -> None:
    heard: list[int] = []
    once = train_centralized(digits(), 64, heard.append)
    again = train_centralized(digits(), 64)
    assert once == again
    assert heard == [1, 2, 3]
    assert once.batch_size == 64
    assert [step for step, _ in once.losses] == [0, 1, 2]
    assert once.losses[0][1] == pytest.approx(math.log(10), rel=0.1)
    assert train_centralized(digits("seed=1"), 64) != once


def test_small_models_take_one_thread_and_give_it_back() -> None:
    trainer = digits()
    assert trainer.flat.vector.numel() <= SMALL_MODEL
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with fitting_threads(trainer):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
