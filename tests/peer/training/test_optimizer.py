"""Optimizers from config and task, and the quasi-global step."""

import math

import pytest
import torch

from peer.training.optimizer import (
    build,
    gather_movement,
    quasi_global_adam_step,
    quasi_global_step,
    resolve,
)
from relayswarm.config import OptimizerConfig
from relayswarm.errors import ConfigError

TASK = {
    "name": "sgd",
    "lr": 0.1,
    "momentum": 0.9,
    "nesterov": True,
    "schedule": "cosine",
    "warmup_steps": 5,
}


def settled(task=None, **config):
    return resolve(OptimizerConfig(**config), TASK if task is None else task)


class TestResolve:
    def test_the_task_fills_what_the_config_leaves_open(self) -> None:
        found = settled(lr=0.5)
        assert (found.name, found.lr, found.momentum, found.nesterov) == ("sgd", 0.5, 0.9, True)
        assert (found.schedule, found.warmup_steps) == ("cosine", 5)

    def test_without_either_it_is_plain_sgd(self) -> None:
        found = settled(task={})
        assert (found.name, found.lr, found.momentum, found.nesterov) == ("sgd", 0.1, 0.0, False)
        assert found.schedule == "constant"

    def test_another_optimizer_keeps_only_the_schedule(self) -> None:
        found = settled(name="adam")
        assert (found.lr, found.momentum, found.betas) == (1e-3, 0.0, (0.9, 0.999))
        assert (found.schedule, found.warmup_steps) == ("cosine", 5)

    def test_a_warm_up_as_a_part_of_the_run(self) -> None:
        paper = settled(task={"schedule": "step", "warmup": 5 / 200})
        assert [paper.warms_up_for(steps) for steps in (200, 1000, 10)] == [5, 25, 0]
        rates = [paper.rate(step, 200) for step in (0, 4, 5)]
        assert rates == pytest.approx([0.1 / 5, 0.1, 0.1])

    @pytest.mark.parametrize("given", [{"warmup": 0.5}, {"warmup": 0.0}, {"warmup_steps": 0}])
    def test_what_the_config_says_of_the_warm_up_replaces_both_of_the_task_s(self, given) -> None:
        for task in ({"warmup_steps": 7}, {"warmup": 0.07}):
            found = settled(task=task, **given)
            assert found.warms_up_for(100) == 100 * given.get("warmup", 0)

    def test_it_tells_itself_in_words(self) -> None:
        assert settled().describe(100) == (
            "sgd, lr 0.1, momentum 0.9 (Nesterov), cosine, warm-up of 5 steps"
        )
        found = settled(task={"schedule": "step", "warmup": 0.1, "warmup_from": 0.5})
        decays = "step (times 0.1 at 0.75 and 0.9 of the run)"
        assert found.describe(None) == (
            f"sgd, lr 0.1, {decays}, warm-up of 0.1 of the run from 0.5 of it"
        )
        assert "warm-up of 1 step from" in found.describe(10)

    def test_adamw_has_its_usual_decay_and_adam_none(self) -> None:
        assert settled(name="adamw").weight_decay == 0.01
        assert settled(name="adam").weight_decay == 0.0

    def test_setting_momentum_to_zero_takes_nesterov_along(self) -> None:
        assert settled(momentum=0).nesterov is False

    @pytest.mark.parametrize(
        ("config", "field"),
        [
            ({"momentum": 0, "nesterov": True}, "optimizer.nesterov"),
            ({"name": "adam", "betas": (0.9, 1.0)}, "optimizer.betas"),
            ({"name": "adam", "momentum": 0.5}, "optimizer.momentum"),
            ({"name": "adamw", "nesterov": True}, "optimizer.nesterov"),
            ({"betas": (0.9, 0.99)}, "optimizer.betas"),
            ({"decay_at": (0.5,)}, "optimizer.decay_at"),
        ],
    )
    def test_what_does_not_fit_together_is_refused(self, config, field: str) -> None:
        with pytest.raises(ConfigError) as caught:
            settled(**config)
        assert caught.value.field == field

    def test_a_task_with_wrong_defaults_is_told(self) -> None:
        with pytest.raises(ConfigError, match="did you mean 'lr'") as caught:
            settled(task={"lrr": 1})
        assert caught.value.field == "task.optimizer_defaults.lrr"


def run(settings, gradients: list[float], start: float = 1.0) -> list[float]:
    x = torch.nn.Parameter(torch.tensor([start], dtype=torch.float64))
    optimizer = build(settings, [x])
    path = []
    for gradient in gradients:
        x.grad = torch.tensor([gradient], dtype=torch.float64)
        optimizer.step()
        path.append(x.item())
    return path


class TestBuild:
    def test_nesterov_is_the_algorithms_rule(self) -> None:
        """m = a m + g, u = -lr (g + a m)."""
        x, m, expected = 1.0, 0.0, []
        for g in (1.0, -2.0, 0.5):
            m = 0.9 * m + g
            x += -0.1 * (g + 0.9 * m)
            expected.append(x)
        assert run(settled(), [1.0, -2.0, 0.5]) == pytest.approx(expected, rel=1e-14)

    def test_adam_corrects_its_bias_from_the_first_step(self) -> None:
        """So the first step has the rate's size, whatever the gradient's."""
        assert run(settled(name="adam", lr=0.01), [123.0])[0] == pytest.approx(0.99)

    def test_adamw_decays_apart_from_the_gradient(self) -> None:
        settings = settled(name="adamw", lr=0.1, weight_decay=0.5)
        assert run(settings, [0.0], start=2.0)[0] == pytest.approx(2.0 * (1 - 0.1 * 0.5))

    @pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
    def test_grouping_kernels_are_off(self, name: str) -> None:
        options = build(settled(name=name), [torch.nn.Parameter(torch.ones(1))]).defaults
        assert (options["foreach"], options["fused"]) == (False, False)


class TestQuasiGlobalStep:
    def test_is_minus_lr_times_g_plus_b_times_b_m_plus_g(self) -> None:
        x = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
        x.grad = torch.tensor([4.0, 8.0])
        m = torch.tensor([2.0, -4.0])
        quasi_global_step([x], [m], lr=0.5, momentum=0.5, weight_decay=0.0)
        # g + b (b m + g): 4 + (1 + 4) / 2 = 6.5;  8 + (-2 + 8) / 2 = 11
        assert x.tolist() == [1 - 0.5 * 6.5, 2 - 0.5 * 11]
        assert m.tolist() == [2, -4]
        assert x.grad.tolist() == [4, 8]

    def test_weight_decay_is_part_of_the_gradient(self) -> None:
        x = torch.nn.Parameter(torch.tensor([2.0]))
        x.grad = torch.tensor([1.0])
        quasi_global_step([x], [torch.zeros(1)], lr=1.0, momentum=0.5, weight_decay=0.5)
        assert x.tolist() == [2 - (2 + 0.5 * 2)]
        assert x.grad.tolist() == [1]

    def test_a_parameter_without_gradient_moves_by_momentum_alone(self) -> None:
        x = torch.nn.Parameter(torch.tensor([1.0]))
        quasi_global_step([x], [torch.tensor([4.0])], lr=0.5, momentum=0.5, weight_decay=0.0)
        assert x.tolist() == [1 - 0.5 * 0.25 * 4]


class TestQuasiGlobalAdam:
    BETAS = (0.5, 0.75)

    def adam(self, *values: list[float]) -> tuple[torch.optim.Optimizer, list[torch.nn.Parameter]]:
        parameters = [torch.nn.Parameter(torch.tensor(v, dtype=torch.float64)) for v in values]
        return build(settled(name="adam"), parameters), parameters

    def gather(self, optimizer, parameters, *movements: list[float]) -> None:
        tensors = [torch.tensor(d, dtype=torch.float64) for d in movements]
        gather_movement(optimizer, parameters, tensors, self.BETAS)

    def moments(self, optimizer, parameter) -> tuple[list[float], list[float], float]:
        state = optimizer.state[parameter]
        return state["exp_avg"].tolist(), state["exp_avg_sq"].tolist(), float(state["step"])

    def test_moments_are_of_the_movement_over_its_norm_in_the_whole_model(self) -> None:
        optimizer, (x, y) = self.adam([0.0, 0.0], [0.0])
        self.gather(optimizer, [x, y], [4.0, 0.0], [-3.0])  # of norm 5
        assert self.moments(optimizer, x) == (
            pytest.approx([0.5 * 0.8, 0]),
            pytest.approx([0.25 * 0.64, 0]),
            1,
        )
        self.gather(optimizer, [x, y], [0.0, 0.0], [200.0])
        assert self.moments(optimizer, y) == (
            pytest.approx([0.5 * 0.5 * -0.6 + 0.5]),
            pytest.approx([0.75 * 0.25 * 0.36 + 0.25]),
            2,
        )

    def test_no_movement_counts_and_is_no_number(self) -> None:
        optimizer, (x,) = self.adam([1.0])
        self.gather(optimizer, [x], [0.0])
        assert self.moments(optimizer, x) == ([0], [0], 1)

    def test_a_step_is_adam_s_from_moments_that_it_leaves_alone(self) -> None:
        optimizer, (x,) = self.adam([2.0])
        self.gather(optimizer, [x], [1.0])  # d = 1: m = 1/2, v = 1/4
        self.gather(optimizer, [x], [-1.0])  # d = -1: m = -1/4, v = 7/16
        kept = self.moments(optimizer, x)
        x.grad = torch.tensor([3.0], dtype=torch.float64)
        m, v = 0.5 * -0.25 + 0.5 * 3.5, 0.75 * 7 / 16 + 0.25 * 3.5**2  # decayed: 3 + 2/4
        expected = 2 - 0.1 * (m / (1 - 0.5**2)) / (math.sqrt(v / (1 - 0.75**2)) + 1e-8)
        quasi_global_adam_step(optimizer, [x], 0.1, self.BETAS, weight_decay=0.25)
        assert x.tolist() == pytest.approx([expected], rel=1e-7)
        assert self.moments(optimizer, x) == kept
        assert x.grad.tolist() == [3]

    def test_a_parameter_without_gradient_moves_by_its_moments_alone(self) -> None:
        optimizer, (x,) = self.adam([2.0])
        self.gather(optimizer, [x], [1.0])
        quasi_global_adam_step(optimizer, [x], 0.1, self.BETAS, weight_decay=0.25)
        m, v = 0.5 * 0.5 / (1 - 0.5), 0.75 * 0.25 / (1 - 0.75)
        assert x.tolist() == pytest.approx([2 - 0.1 * m / math.sqrt(v)], rel=1e-7)

    def test_without_any_movement_it_is_adam_s_first_step(self) -> None:
        optimizer, (x,) = self.adam([2.0, -1.0])
        plain = torch.nn.Parameter(x.detach().clone())
        x.grad, plain.grad = x.detach().cos(), plain.detach().cos()
        gather_movement(optimizer, [x], [torch.zeros_like(x)], (0.9, 0.999))
        quasi_global_adam_step(optimizer, [x], 1e-3, (0.9, 0.999), weight_decay=0.0)
        build(settled(name="adam"), [plain]).step()
        assert torch.allclose(x, plain, rtol=1e-12)
