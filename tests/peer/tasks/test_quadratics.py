"""The quadratics have the curvature, heterogeneity and distance that were asked for."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from peer.tasks.quadratics import Quadratics
from relayswarm.errors import ConfigError
from relayswarm.task import Site

options = st.fixed_dictionaries(
    {
        "dimension": st.integers(2, 8),
        "smoothness": st.floats(1, 10),
        "strong_convexity": st.floats(0.1, 1),
        "heterogeneity": st.floats(0, 100),
        "distance": st.floats(0, 50),
        "convention": st.sampled_from(["exact", "paper"]),
    }
)


@settings(deadline=None)
@given(options=options, shards=st.integers(2, 6), seed=st.integers(0, 2**31 - 1))
def test_problem_has_the_properties_asked_for(options, shards, seed) -> None:
    problem = Quadratics(options).problem(Site(shards=shards, seed=seed))
    mu, smoothness = options["strong_convexity"], options["smoothness"]
    spread = np.linspace(mu, smoothness, options["dimension"])
    wanted = spread if options["convention"] == "exact" else 2 * spread**2
    for a in problem.a:
        assert np.allclose(np.linalg.eigvalsh(2 * a.T @ a), wanted, rtol=1e-9)
    gradients = problem.gradients(problem.x_star)
    assert np.allclose(gradients.mean(axis=0), 0, atol=1e-9)
    zeta_squared = (gradients**2).sum() / shards
    rounding = 1e-15 * wanted.max() * (1 + options["distance"])  # of a gradient
    tolerance = 1e-18 + 4 * rounding * options["heterogeneity"] ** 0.5
    assert zeta_squared == pytest.approx(options["heterogeneity"], rel=1e-9, abs=tolerance)
    assert np.linalg.norm(problem.x_star) == pytest.approx(options["distance"])


def test_suboptimality_is_the_difference_of_losses() -> None:
    problem = Quadratics().problem(Site(shards=5, seed=1))
    x = np.linspace(-3, 3, 10)
    difference = problem.loss(x) - problem.loss(problem.x_star)
    assert problem.suboptimality(x) == pytest.approx(difference, rel=1e-12)
    assert problem.suboptimality(problem.x_star) == 0


def test_shard_loss_and_gradient_are_those_of_f_i() -> None:
    task, site = Quadratics({"dimension": 4}), Site(shard=2, shards=3, seed=7)
    problem = task.problem(site)
    model = task.model()
    with torch.no_grad():
        model.x.copy_(torch.tensor([1.0, -2.0, 3.0, 0.5]))
    loss = task.loss(model, task.data(site).batch(torch.arange(1)))
    loss.backward()
    x = model.x.detach().numpy()
    assert loss.item() == pytest.approx(((problem.a[2] @ x + problem.b[2]) ** 2).sum())
    assert np.allclose(model.x.grad.numpy(), problem.gradients(x)[2], rtol=1e-12)
    assert model.x.dtype == torch.float64
    known = task.gradients(model, task.data(site).batch(torch.arange(1)))
    assert known is not None
    torch.testing.assert_close(known[0], loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(known[1][0], model.x.grad, rtol=1e-12, atol=1e-15)


def test_noise_is_drawn_by_the_loss_alone() -> None:
    quiet, noisy = Quadratics(), Quadratics({"gradient_noise": 1.0})
    assert not quiet.is_random
    assert noisy.is_random
    batch = noisy.data(Site()).batch(torch.arange(1))
    assert noisy.gradients(noisy.model(), batch) is None


def test_mean_loss_over_shards_is_the_evaluated_loss() -> None:
    task = Quadratics()
    sites = [Site(shard=i, shards=4, seed=0) for i in range(4)]
    model = task.model()
    losses = [task.loss(model, task.data(s).batch(torch.arange(1))).item() for s in sites]
    assert task.evaluate(model, sites[0])["loss"].value == pytest.approx(np.mean(losses))


def test_gradient_noise_has_the_variance_asked_for_and_leaves_the_loss() -> None:
    quiet, noisy = Quadratics(), Quadratics({"gradient_noise": 4.0})
    batch = quiet.data(Site()).batch(torch.arange(1))
    model = quiet.model()
    exact = torch.autograd.grad(quiet.loss(model, batch), model.x)[0]
    torch.manual_seed(0)
    noise = []
    for _ in range(2000):
        loss = noisy.loss(model, batch)
        assert loss.item() == quiet.loss(model, batch).item()
        noise.append(torch.autograd.grad(loss, model.x)[0] - exact)
    sample = torch.stack(noise)
    # 2000 draws of a chi-square of 10 degrees: 1 % is the standard error of the mean square
    assert sample.square().sum(dim=1).mean().item() == pytest.approx(4.0, rel=0.05)
    assert sample.mean(dim=0).norm().item() < 0.15


def test_one_shard_has_no_heterogeneity() -> None:
    problem = Quadratics().problem(Site(seed=1))
    assert np.allclose(problem.gradients(problem.x_star), 0, atol=1e-12)


def test_digests_tell_shards_apart() -> None:
    digests = {Quadratics().data(Site(shard=i, shards=3)).digest() for i in range(3)}
    assert len(digests) == 3


def test_curvature_bounds_must_be_ordered() -> None:
    with pytest.raises(ConfigError, match="strong_convexity above smoothness") as caught:
        Quadratics({"smoothness": 1, "strong_convexity": 2})
    assert caught.value.field.startswith("task.options")


@pytest.mark.parametrize(("shards", "steps"), [(4, 8), (8, 15)])
def test_relaysgd_on_a_chain_takes_the_known_number_of_steps(shards: int, steps: int) -> None:
    """Reference values of figure 2 (convention `exact`, zeta^2 = 1, tuned constant rate)."""
    found = [
        min(_steps_of_relaysgd(shards, seed, rate) for rate in np.arange(0.2, 2.0, 0.05))
        for seed in range(3)
    ]
    assert np.mean(found) == pytest.approx(steps, abs=1.5)


def _steps_of_relaysgd(n: int, seed: int, rate: float, limit: int = 60) -> int:
    """Steps until the mean model's suboptimality stays below 1e-6 (`limit` if it does not)."""
    problem = Quadratics().problem(Site(shards=n, seed=seed))
    x = np.zeros((n, 10))
    right, left = np.zeros((n, 10)), np.zeros((n, 10))  # sums arriving from the left, the right
    counts_right, counts_left = np.zeros(n), np.zeros(n)
    reached = limit
    for step in range(1, limit + 1):
        half = x - rate * np.array([problem.gradients(x[i])[i] for i in range(n)])
        right = np.vstack([np.zeros(10), (half + right)[:-1]])
        left = np.vstack([(half + left)[1:], np.zeros(10)])
        counts_right = np.concatenate([[0], (1 + counts_right)[:-1]])
        counts_left = np.concatenate([(1 + counts_left)[1:], [0]])
        seen = 1 + counts_right + counts_left
        x = (half + right + left + (n - seen)[:, None] * x) / n
        is_close = problem.suboptimality(x.mean(axis=0)) <= 1e-6
        reached = min(reached, step) if is_close else limit
    return reached
