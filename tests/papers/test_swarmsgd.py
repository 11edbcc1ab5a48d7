"""The claims of Nadiradze et al., "SwarmSGD: Scalable Decentralized SGD with Local Updates", each
quoted above its test.

Gamma is the variance of the models, sum over i of ||X_i - mu||^2 (equation 6).
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction as F
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.figures.lab import Quadratics, problems, run, swarm_config
from coordinator.graphs import build_graph
from peer.algorithms.core import Run, Train
from peer.simulator.exact import ExactSwarm, Problem, views

FORMS = pytest.mark.parametrize("blocking", [True, False], ids=["blocking", "non-blocking"])


def exact_swarm(steps: int, *, blocking: bool, run_steps: int = 1, **options: object) -> ExactSwarm:
    """Six peers on a complete graph, which will start at 0 and descend toward -12, -7, ..., 13."""
    graph = build_graph("complete", 6)
    targets = [(F(5 * i - 12),) for i in range(6)]
    problem = Problem([(F(0),)] * 6, targets, lr=F(1, 4), local_steps=run_steps)
    told = Run(steps, seed=3, local_steps=run_steps)
    chosen = {"blocking": blocking, **options}
    return ExactSwarm("swarmsgd", views(graph=graph), told, problem, options=chosen)


@cache
def measured(
    graph: str,
    local_steps: int,
    lr: float,
    zeta_squared: float,
    *,
    blocking: bool,
    steps: int = 120,
) -> tuple[Tensor, Tensor]:
    """Gamma and f(mu) - f(x*), each (steps,): 8 peers with noisy gradients (sigma^2 = 0.1)."""
    options = {"blocking": blocking, "local_steps": local_steps}
    config = swarm_config("swarmsgd", graph, 8, steps, options=options)
    chosen = problems(8, (0,), (zeta_squared,), r0=1)
    descent = Quadratics(chosen, torch.tensor([[lr]]), local_steps, noise=0.1)
    gamma, error = [], []

    def watch(done: int, models: Tensor) -> bool:  # noqa: ARG001
        mu = models.mean(0)
        gamma.append(float((models - mu).square().sum()))
        error.append(float(descent.suboptimality(mu)))
        return False

    run(config, descent, 10, watch)
    return torch.tensor(gamma), torch.tensor(error)


def test_averaging_leaves_the_mean_to_the_updates() -> None:
    """Algorithm 1: both models become (X_i + X_j) / 2, so mu moves by local steps alone."""
    swarm = exact_swarm(9, blocking=True).run()
    moved = sum(update[0] for body in swarm.bodies for update in body.updates)
    assert sum(body.vectors["x"][0] for body in swarm.bodies) == moved


def test_the_mean_of_communication_copies_moves_by_deltas_alone() -> None:
    """Appendix, lemma B.8: the sum of all X_t moves by the initiator's local updates, not by the
    exchange."""
    swarm = exact_swarm(9, blocking=False).run()
    moved = sum(update[0] for body in swarm.bodies for update in body.updates)
    assert sum(body.vectors["communication"][0] for body in swarm.bodies) == moved


def test_the_number_of_local_steps_may_be_geometric_with_mean_h() -> None:
    """Theorem 1: "Let the number of local stochastic gradient steps performed by each agent upon
    interaction be a geometric random variable with mean H"."""
    taken: list[int] = []

    def count(effect: Train) -> None:
        assert effect.local_steps is not None
        taken.append(len(effect.local_steps))

    swarm = exact_swarm(60, blocking=True, run_steps=3, geometric=True)
    for node in swarm.nodes:
        node.on_train = count
    swarm.run()
    # Some 350 draws of mean 3 and variance 6: their mean deviates by 0.13.
    assert sum(taken) / len(taken) == pytest.approx(3, abs=0.5)
    assert sum(steps == 1 for steps in taken) / len(taken) == pytest.approx(1 / 3, abs=0.1)


@FORMS
def test_the_potential_does_not_depend_on_the_number_of_interactions(blocking: bool) -> None:
    """Section 4.1: "The critical point is that the upper bound on the expectation of Gamma_t does
    not depend on the number of interactions t"."""
    gamma, _ = measured("ring", 1, 0.05, 1.0, blocking=blocking)
    early, late = gamma[30:90].mean(), gamma[90:].mean()
    assert 0.6 < late / early < 1.6


@FORMS
def test_the_potential_grows_with_the_square_of_rate_and_local_steps(blocking: bool) -> None:
    """Lemma 3: "E[Gamma_t] <= 2 n eta^2 H^2 M^2 (2r/lambda_2 + 4r^2/lambda_2^2)"."""
    base = measured("complete", 1, 0.005, 1.0, blocking=blocking)[0][30:].mean()
    four_steps = measured("complete", 4, 0.005, 1.0, blocking=blocking)[0][30:].mean()
    four_fold_rate = measured("complete", 1, 0.02, 1.0, blocking=blocking)[0][30:].mean()
    assert 9 < four_fold_rate / base < 17
    assert 9 < four_steps / base < 17


class Recorded(Quadratics):
    """Quadratics that keep the largest squared norm of a full gradient of any peer on its way."""

    largest = 0.0

    def __call__(self, peers: Sequence[int], step: int, lr_scale: float, models: Tensor) -> None:
        x = models.view(len(peers), *self.shape)
        gradient = x @ self._hessian[list(peers)] + self._offset[list(peers)]
        self.largest = max(self.largest, float(gradient.square().sum(-1).max()))
        super().__call__(peers, step, lr_scale, models)


@FORMS
def test_the_potential_stays_below_its_bound(blocking: bool) -> None:
    """Lemma 3: "E[Gamma_t] <= 2 n eta^2 H^2 M^2 (2r/lambda_2 + 4r^2/lambda_2^2)", where M^2 bounds
    the second moment of the gradients. On the complete graph r = n - 1 and lambda_2 = n."""
    n, lr, noise = 8, 0.02, 0.1
    config = swarm_config("swarmsgd", "complete", n, 60, options={"blocking": blocking})
    chosen = problems(n, range(8), (1.0,), r0=1)  # the mean is over their noise
    descent = Recorded(chosen, torch.full((8, 1), lr), noise=noise)
    gamma = []

    def watch(done: int, models: Tensor) -> bool:  # noqa: ARG001
        gamma.append((models - models.mean(0)).square().sum() / len(chosen))
        return False

    run(config, descent, 8 * 10, watch)
    ratio = (n - 1) / n  # r / lambda_2
    bound = 2 * n * lr**2 * (descent.largest + noise) * (2 * ratio + 4 * ratio**2)
    optima = torch.stack([torch.from_numpy(local_optima(problem)) for problem in chosen])
    apart = (optima - optima.mean(1, keepdim=True)).square().sum() / len(chosen)
    assert 0 < max(gamma) < bound < apart  # who does not average ends at its own optimum


def local_optima(problem: Any) -> Any:
    """Where each f_i(x) = ||A_i x + b_i||^2 is least, (n, d)."""
    return -np.linalg.solve(problem.a, problem.b[..., None])[..., 0]


@FORMS
def test_a_well_connected_graph_keeps_models_closer(blocking: bool) -> None:
    """Section 4.1: the topology's term "gets dampened if the graph is well-connected
    (corresponding to a large value of lambda_2)"."""
    ring = measured("ring", 1, 0.05, 1.0, blocking=blocking)[0][30:].mean()
    complete = measured("complete", 1, 0.05, 1.0, blocking=blocking)[0][30:].mean()
    assert complete < 0.7 * ring


@FORMS
def test_it_converges_at_the_average_of_the_models(blocking: bool) -> None:
    """Section 3: "as long as the maximum number of local steps is bounded, this procedure still
    converges, in the sense that gradients calculated at average value of models are vanishing"."""
    rough = measured("complete", 4, 0.1, 0.0, blocking=blocking)[1]
    fine = measured("complete", 4, 0.02, 0.0, blocking=blocking)[1]
    assert rough[100:].mean() < 0.01 * rough[0]
    assert fine[100:].mean() < 0.5 * rough[100:].mean()  # the rate sets what noise leaves


def test_both_forms_find_the_optimum_that_no_peer_has() -> None:
    """Appendix, section B: the non-blocking form has the same rate of convergence. Peers' own
    optima are apart (zeta^2 = 1); the mean of the models comes as near to the common one."""
    left = {}
    for blocking in (True, False):
        config = swarm_config("swarmsgd", "complete", 8, 120, options={"blocking": blocking})
        chosen = problems(8, (0, 1, 2), (1.0,), r0=1)
        descent = Quadratics(chosen, torch.full((3, 1), 0.1), noise=0.0)
        error: list[float] = []

        def watch(done: int, models: Tensor) -> bool:  # noqa: ARG001
            error.append(float(descent.suboptimality(models.mean(0)).mean()))  # noqa: B023
            return False

        run(config, descent, 3 * 10, watch)
        left[blocking] = np.mean(error[-20:]) / error[0]
    alone = torch.stack([torch.from_numpy(local_optima(p)) for p in chosen])  # (3, n, d)
    lost = torch.stack([descent.suboptimality(alone[:, i].reshape(-1)) for i in range(8)])
    assert max(left.values()) < 0.002
    assert left[False] < 2 * left[True]
    assert float(lost.mean()) > 0.1
