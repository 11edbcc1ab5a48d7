"""Local training depends on config, site and vector, and on nothing else."""

import json
import math
import threading
from typing import Any

import pytest
import torch
from torch import nn

from peer.tasks.quadratics import Quadratics
from peer.training.learner import TrainerState
from peer.training.trainer import Trainer, make_deterministic, to_device
from relayswarm.errors import ConfigError
from relayswarm.task import Task, TensorData


def losses(trainer: Trainer, steps: range) -> list[float]:
    return [trainer.train(step).loss for step in steps]


class TestStart:
    def test_all_peers_start_from_the_same_point(self, rig) -> None:
        vectors = [rig.trainer(shard=shard).flat.vector for shard in range(3)]
        assert torch.equal(vectors[0], vectors[1])
        assert torch.equal(vectors[0], vectors[2])

    def test_whatever_was_drawn_before(self, rig) -> None:
        first = rig.trainer().flat.vector
        torch.rand(5)
        assert torch.equal(rig.trainer().flat.vector, first)

    def test_another_seed_is_another_point(self, rig) -> None:
        assert not torch.equal(rig.trainer("seed=1").flat.vector, rig.trainer().flat.vector)

    def test_the_global_random_state_is_left_alone(self, rig) -> None:
        before = torch.get_rng_state()
        trainer = rig.trainer()
        trainer.train(0)
        trainer.evaluate()
        assert torch.equal(torch.get_rng_state(), before)

    def test_unusable_device_is_named(self, rig) -> None:
        with pytest.raises(ConfigError, match="cannot use it") as caught:
            Trainer(rig.Task(), rig.config(), rig.trainer().site, device="nonsense")
        assert caught.value.field == "device"


class TestTrain:
    def test_is_bit_identical_alone_and_interleaved(self, rig) -> None:
        alone = []
        for shard in range(2):
            trainer = rig.trainer(shard=shard)
            alone.append((losses(trainer, range(5)), trainer.flat.vector))
        trainers = [rig.trainer(shard=shard) for shard in range(2)]
        together: list[list[float]] = [[], []]
        for step in range(5):
            for shard, trainer in enumerate(trainers):
                together[shard].append(trainer.train(step).loss)
                trainer.evaluate()
                torch.rand(1)
        for shard in range(2):
            assert together[shard] == alone[shard][0]
            assert torch.equal(trainers[shard].flat.vector, alone[shard][1])
        assert alone[0][0] != alone[1][0]

    @pytest.mark.parametrize("optimizer", ["sgd", "adam"])
    def test_gradients_that_the_task_knows_take_the_place_of_autograd(self, rig, optimizer) -> None:
        class ByAutograd(Quadratics):
            gradients = Task.gradients

        settings = (f'optimizer.name="{optimizer}"', "optimizer.lr=0.1", "algorithm.local_steps=2")
        known = rig.trainer(*settings, task=Quadratics())
        derived = rig.trainer(*settings, task=ByAutograd())
        assert losses(known, range(4)) == pytest.approx(losses(derived, range(4)), rel=1e-12)
        torch.testing.assert_close(known.flat.vector, derived.flat.vector, rtol=1e-12, atol=0)

    def test_random_state_is_not_swapped_for_a_task_that_draws_nothing(self, rig) -> None:
        class Caught(Quadratics):
            def gradients(self, model, batch):
                states.append(torch.get_rng_state())
                return super().gradients(model, batch)

        class Drawing(Caught):
            is_random = True

        states: list[torch.Tensor] = []
        outside = torch.get_rng_state()
        rig.trainer(task=Caught()).train(0)
        rig.trainer(task=Drawing()).train(0)
        assert torch.equal(states[0], outside)
        assert not torch.equal(states[1], outside)

    def test_is_the_same_in_another_thread(self, rig) -> None:
        here, there = rig.trainer(), rig.trainer()
        losses(here, range(3))
        thread = threading.Thread(target=losses, args=(there, range(3)))
        thread.start()
        thread.join()
        assert torch.equal(here.flat.vector, there.flat.vector)

    def test_takes_the_local_steps(self, rig) -> None:
        one = rig.trainer("algorithm.local_steps=1")
        three = rig.trainer("algorithm.local_steps=3")
        for draw in range(3):
            one.train(draw)
        result = three.train(0)
        assert torch.equal(one.flat.vector, three.flat.vector)
        assert result.lr == one.lr(0)

    def test_takes_other_local_steps_if_told(self, rig) -> None:
        """Their numbers, counted over the run, decide on the samples."""
        usual, told = rig.trainer("algorithm.local_steps=2"), rig.trainer("algorithm.local_steps=2")
        for step in range(2):
            usual.train(step)
        told.train(0, local_steps=range(3))
        told.train(1, local_steps=range(3, 4))
        assert torch.equal(usual.flat.vector, told.flat.vector)

    def test_starts_from_what_is_in_the_vector(self) -> None:
        """On a quadratic the step is known: x - lr 2 A^T (A x + b)."""
        trainer = quadratic("optimizer.lr=0.25")
        trainer.flat.vector.fill_(2.0)
        a, b = trainer.data.batch(torch.arange(1))
        x = torch.full((10,), 2.0, dtype=torch.float64)
        expected = x - 0.25 * 2 * a.T @ (a @ x + b)
        result = trainer.train(0)
        assert torch.allclose(trainer.flat.vector, expected, rtol=1e-14)
        assert result.loss == pytest.approx((a @ x + b).square().sum().item())

    def test_scales_the_rate(self) -> None:
        plain, scaled = quadratic("optimizer.lr=0.3"), quadratic("optimizer.lr=0.1")
        plain.train(0)
        assert scaled.train(0, lr_scale=3).lr == pytest.approx(0.3)
        assert torch.allclose(plain.flat.vector, scaled.flat.vector)

    def test_the_rate_follows_the_step_not_the_calls(self, rig) -> None:
        trainer = rig.trainer("optimizer.schedule=cosine")
        assert trainer.train(10).lr == trainer.lr(10) == pytest.approx(0.025)

    def test_loss_that_is_not_finite_is_nan_and_training_goes_on(self) -> None:
        trainer = quadratic("optimizer.lr=0.1")
        trainer.flat.vector.fill_(float("inf"))
        assert math.isnan(trainer.train(0).loss)
        trainer.flat.vector.fill_(0)
        assert math.isfinite(trainer.train(1).loss)

    def test_refuses_a_model_whose_views_are_broken(self, rig) -> None:
        trainer = rig.trainer()
        trainer.flat.module.double()
        with pytest.raises(ConfigError, match="moved or replaced"):
            trainer.train(0)

    @pytest.mark.parametrize("spoil", [lambda loss: loss[None], lambda loss: loss.detach()])
    def test_refuses_a_loss_that_is_no_scalar_or_has_no_gradient(self, rig, spoil) -> None:
        class Wrong(rig.Task):
            def loss(self, model, batch):
                return spoil(super().loss(model, batch))

        with pytest.raises(ConfigError, match="not a scalar with a gradient"):
            rig.trainer(task=Wrong()).train(0)

    def test_frozen_parameters_and_integer_buffers_are_no_obstacle(self, rig) -> None:
        class Frozen(rig.Task):
            def model(self) -> nn.Module:
                model = super().model()
                model[0].weight.requires_grad_(False)
                return model

        trainer = rig.trainer(task=Frozen())
        weight = trainer.flat.module[0].weight.clone()
        before = trainer.flat.vector.clone()
        trainer.train(0)
        assert torch.equal(trainer.flat.module[0].weight, weight)
        assert not torch.equal(trainer.flat.vector, before)


class TestMomentum:
    def test_given_momentum_takes_the_place_of_the_optimizers(self) -> None:
        trainer = quadratic("optimizer.lr=0.25", "optimizer.momentum=0.5")
        a, b = trainer.data.batch(torch.arange(1))
        m = torch.arange(10, dtype=torch.float64)
        g = 2 * a.T @ b
        trainer.train(0, momentum=m)
        expected = -0.25 * (g + 0.9 * (0.9 * m + g))
        assert torch.allclose(trainer.flat.vector, expected, rtol=1e-13)
        assert torch.equal(m, torch.arange(10, dtype=torch.float64))

    def test_its_factor_is_the_algorithms(self) -> None:
        trainer = quadratic("optimizer.lr=0.25", "algorithm.momentum=0.0")
        plain = quadratic("optimizer.lr=0.25")
        trainer.train(0, momentum=torch.ones(10, dtype=torch.float64))
        plain.train(0)
        assert torch.allclose(trainer.flat.vector, plain.flat.vector, rtol=1e-14)

    def test_of_d2_is_nesterov_momentum(self) -> None:
        """Algorithm 2: m <- a m + g, u = -lr (g + a m)."""
        rate = "optimizer.lr=0.25"
        trainer = quadratic(rate, "algorithm.name=d2", "algorithm.momentum=0.5")
        a, b = trainer.data.batch(torch.arange(1))
        x = m = torch.zeros(10, dtype=torch.float64)
        for step in range(3):
            trainer.train(step)
            g = 2 * a.T @ (a @ x + b)
            m = 0.5 * m + g
            x = x - 0.25 * (g + 0.5 * m)
        assert torch.allclose(trainer.flat.vector, x, rtol=1e-13)
        assert quadratic(rate, "algorithm.name=d2", "algorithm.momentum=0").settings.momentum == 0

    def test_is_refused_with_another_optimizer(self) -> None:
        trainer = quadratic("optimizer.name=adamw")
        with pytest.raises(ConfigError, match="quasi-global") as caught:
            trainer.train(0, momentum=torch.zeros(10, dtype=torch.float64))
        assert caught.value.field == "optimizer.name"

    def test_of_an_optimizer_that_only_the_task_names_is_refused(self, rig) -> None:
        class Adaptive(rig.Task):
            def optimizer_defaults(self):
                return {"name": "adam"}

        with pytest.raises(ConfigError, match="another method with each optimizer") as caught:
            rig.trainer("algorithm.name=dpsgd-qgm", task=Adaptive())
        assert caught.value.field == "optimizer.name"
        for name in ("adam", "sgd"):
            settings = ("algorithm.name=dpsgd-qgm", f"optimizer.name={name}")
            assert rig.trainer(*settings, task=Adaptive()).settings.name == name

    def test_adam_gathers_it_once_for_all_local_steps(self) -> None:
        trainer = quadratic("optimizer.name=adam", "optimizer.lr=0.25", "algorithm.local_steps=2")
        a, b = trainer.data.batch(torch.arange(1))
        m = v = x = torch.zeros(10, dtype=torch.float64)
        for step, d in enumerate([torch.zeros_like(x), torch.arange(10.0).double(), x + 3]):
            trainer.train(step, momentum=d)
            d = d / (d.norm() + 1e-8)
            m, v = 0.9 * m + 0.1 * d, 0.999 * v + 0.001 * d**2
            for _ in range(2):
                g = 2 * a.T @ (a @ x + b)
                first = (0.9 * m + 0.1 * g) / (1 - 0.9 ** (step + 1))
                second = (0.999 * v + 0.001 * g**2) / (1 - 0.999 ** (step + 1))
                x = x - 0.25 * first / (second.sqrt() + 1e-8)
        assert torch.allclose(trainer.flat.vector, x, rtol=1e-12)

    @pytest.mark.parametrize("optimizer", ["sgd", "adam"])
    def test_buffers_take_no_part(self, rig, optimizer: str) -> None:
        one, other = (rig.trainer(f"optimizer.name={optimizer}") for _ in range(2))
        end = one.flat.parameters_end
        m = torch.zeros_like(one.flat.vector)
        one.train(0, momentum=m)
        m[end:] = 100.0
        other.train(0, momentum=m)
        assert len(m) > end
        assert torch.equal(one.flat.vector, other.flat.vector)


class TestEvaluate:
    def test_is_repeatable_and_in_evaluation_mode(self, rig) -> None:
        trainer = rig.trainer()
        first = trainer.evaluate()
        assert first == trainer.evaluate()
        assert first["training"].value == 0
        assert first["loss"].weight == 20

    def test_leaves_training_as_it_was(self, rig) -> None:
        watched, other = rig.trainer(), rig.trainer()
        for step in range(3):
            watched.train(step)
            watched.evaluate()
            other.train(step)
        assert torch.equal(watched.flat.vector, other.flat.vector)

    def test_restores_the_mode_of_each_module(self, rig) -> None:
        trainer = rig.trainer()
        trainer.flat.module[1].eval()
        trainer.evaluate()
        assert [m.training for m in trainer.flat.module] == [True, False, True, True, True]

    def test_of_another_vector_leaves_the_live_one(self) -> None:
        trainer = quadratic()
        problem = trainer.task.problem(trainer.site)
        measured = trainer.evaluate(torch.from_numpy(problem.x_star))
        assert measured["suboptimality"].value == 0
        assert trainer.flat.vector.tolist() == [0.0] * 10

    def test_modes_and_vector_come_back_after_an_error(self, rig) -> None:
        class Failing(rig.Task):
            def evaluate(self, *_):
                raise ZeroDivisionError

        trainer = rig.trainer(task=Failing())
        before = trainer.flat.vector.clone()
        with pytest.raises(ZeroDivisionError):
            trainer.evaluate(torch.zeros_like(before))
        assert torch.equal(trainer.flat.vector, before)
        assert trainer.flat.module.training


class TestState:
    @pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
    def test_a_resumed_trainer_goes_on_bit_identically(self, rig, optimizer: str) -> None:
        settings = (f"optimizer.name={optimizer}", "algorithm.local_steps=2")
        original = rig.trainer(*settings)
        losses(original, range(4))
        state = original.state()
        values = json.loads(json.dumps(state.values))
        resumed = rig.trainer(*settings)
        resumed.load_state(TrainerState(state.tensors, values))
        assert losses(resumed, range(4, 8)) == losses(original, range(4, 8))
        assert torch.equal(resumed.flat.vector, original.flat.vector)
        tracked = [t.flat.module[1].num_batches_tracked.item() for t in (original, resumed)]
        assert tracked == [16, 16]

    def test_moments_of_the_average_s_movement_are_in_it(self, rig) -> None:
        """Quasi-global Adam: what the last steps gathered is nowhere else."""
        settings = ("algorithm.name=dpsgd-qgm", "optimizer.name=adam")
        original, resumed = rig.trainer(*settings), rig.trainer(*settings)
        movements = torch.randn(8, len(original.flat.vector))
        for step in range(4):
            original.train(step, momentum=movements[step])
        resumed.load_state(original.state())
        for step in range(4, 8):
            for trainer in (original, resumed):
                trainer.train(step, momentum=movements[step])
        assert torch.equal(resumed.flat.vector, original.flat.vector)

    def test_is_a_copy(self, rig) -> None:
        trainer = rig.trainer()
        losses(trainer, range(2))
        state = trainer.state()
        kept = {name: t.clone() for name, t in state.tensors.items()}
        losses(trainer, range(2, 4))
        assert all(torch.equal(kept[name], t) for name, t in state.tensors.items())

    def test_a_loaded_state_is_not_written_to(self, rig) -> None:
        state = rig.trainer("optimizer.name=adam").state()
        trainer = rig.trainer("optimizer.name=adam")
        losses(trainer, range(2))
        state = trainer.state()
        kept = {name: t.clone() for name, t in state.tensors.items()}
        resumed = rig.trainer("optimizer.name=adam")
        resumed.load_state(state)
        losses(resumed, range(2, 4))
        assert all(torch.equal(kept[name], t) for name, t in state.tensors.items())

    def test_of_another_model_is_refused(self, rig) -> None:
        with pytest.raises(ConfigError, match="checkpoint fingerprint"):
            rig.trainer().load_state(quadratic().state())

    @pytest.mark.parametrize(
        ("name", "spoilt"),
        [
            ("vector", torch.zeros(1)),  # would be spread over all of it
            ("random/torch", torch.zeros(3, dtype=torch.uint8)),
            ("random/python", torch.full((625,), 2**40)),
            ("optimizer/0/momentum_buffer", torch.zeros(7)),
            ("optimizer/99/momentum_buffer", torch.zeros(1)),
            ("optimizer/x/momentum_buffer", torch.zeros(1)),
        ],
    )
    def test_that_fits_nothing_is_one_clear_error(self, rig, name: str, spoilt: Any) -> None:
        trainer = rig.trainer("optimizer.momentum=0.9")
        losses(trainer, range(2))
        state = trainer.state()
        tensors = {**state.tensors, name: spoilt}
        with pytest.raises(ConfigError, match="its contents are not those of this run"):
            trainer.load_state(TrainerState(tensors, state.values))
        del tensors[name]
        if not name.startswith("optimizer"):
            with pytest.raises(ConfigError, match="its contents are not those of this run"):
                trainer.load_state(TrainerState(tensors, state.values))

    @pytest.mark.parametrize("pair", [("sgd", "adam"), ("adam", "sgd")])
    def test_of_another_optimizer_is_refused(self, rig, pair: tuple[str, str]) -> None:
        original, other = (rig.trainer(f"optimizer.name={name}") for name in pair)
        original.train(0)
        with pytest.raises(ConfigError, match="checkpoint optimizer"):
            other.load_state(original.state())


def test_deterministic_mode_pins_kernels_and_threads(rig) -> None:
    torch.set_num_threads(2)
    rig.trainer("deterministic=true")
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.get_num_threads() == 1
    make_deterministic()  # again is harmless


def test_batches_are_moved_whatever_their_form() -> None:
    meta = torch.device("meta")
    moved = to_device({"a": [torch.ones(1), 3], "b": (torch.ones(2), "text")}, meta)
    assert moved["a"][0].device == moved["b"][0].device == meta
    assert (moved["a"][1], moved["b"][1]) == (3, "text")
    assert isinstance(moved["b"], tuple)


def test_data_are_loaded_under_a_random_state_of_their_own(rig) -> None:
    class Shuffling(rig.Task):
        def data(self, site):  # noqa: ARG002
            return TensorData(torch.randn(20, 3), torch.randn(20, 1))

    digests = [rig.trainer(task=Shuffling(), shard=s).data.digest() for s in (0, 0, 1)]
    assert digests[0] == digests[1] != digests[2]


def quadratic(*overrides: str) -> Trainer:
    from peer.training.trainer import make_site
    from relayswarm.config import parse

    config = parse("", ["peers=3", "steps=20", *overrides])
    return Trainer(Quadratics(), config, make_site(config, 1))
