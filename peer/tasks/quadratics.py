"""`quadratics`: random quadratics of known heterogeneity (RelaySGD paper, appendix B.4).

Shard i of n has f_i(x) = ||A_i x + b_i||^2 over x in R^d, in float64, and all seek the minimum of
f = (1/n) sum_i f_i. The generator controls the curvature (mu, L), how far the shards' optima lie
apart (zeta^2 = (1/n) sum_i ||grad f_i(x*)||^2), and how far the start, 0, lies from the optimum
x* (r0). Gradients are full, so a batch is the whole shard, whatever the batch size.

B.4 leaves open what mu and L bound. In convention `exact` the eigenvalues of every Hessian
2 A_i^T A_i run evenly from mu to L, so a rate below 2/L converges and theorems apply as stated. In
convention `paper` the singular values of A_i do, as printed: the Hessian's reach from 2 mu^2 to
2 L^2.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor, nn

from peer.tasks.data_files import require_common
from relayswarm.task import Measured, Options, Site, Task

_STREAM = 0x0B4  # keeps these draws apart from whatever else is seeded with the run's seed

Floats = NDArray[np.float64]


class QuadraticsOptions(Options):
    """`[task.options]` of `quadratics`; the paper's symbols stand behind each."""

    dimension: int = Field(default=10, ge=1, le=4096)  # d
    smoothness: float = Field(default=1.0, gt=0)  # L
    strong_convexity: float = Field(default=0.5, gt=0)  # mu
    heterogeneity: float = Field(default=1.0, ge=0)  # zeta^2
    distance: float = Field(default=10.0, ge=0)  # r0, of the start from the optimum
    gradient_noise: float = Field(default=0.0, ge=0)  # sigma^2 = E ||noise||^2, Gaussian
    convention: Literal["exact", "paper"] = "exact"

    @model_validator(mode="after")
    def _ordered(self) -> QuadraticsOptions:
        if self.strong_convexity > self.smoothness:
            raise ValueError("strong_convexity above smoothness: lower it")
        return self


@dataclass(frozen=True)
class Problem:
    """The quadratics of all shards: `a` (n, d, d), `b` (n, d), the optimum `x_star` (d,)."""

    a: Floats
    b: Floats
    x_star: Floats

    @cached_property
    def hessian(self) -> Floats:
        """Of the mean f: (2/n) sum_i A_i^T A_i, shape (d, d)."""
        rows = self.a.reshape(-1, self.a.shape[-1])  # of all A_i, one below the other
        return np.asarray(2 * rows.T @ rows / len(self.a))

    def gradients(self, x: Floats) -> Floats:
        """grad f_i(x) = 2 A_i^T (A_i x + b_i) of every shard, shape (n, d)."""
        return np.asarray(2 * np.einsum("nki,nk->ni", self.a, self.a @ x + self.b))

    def loss(self, x: Floats) -> float:
        """f(x), the mean over shards."""
        return float(((self.a @ x + self.b) ** 2).sum() / len(self.a))

    def suboptimality(self, x: Floats) -> float:
        """f(x) - f(x*) as 1/2 (x - x*)^T H (x - x*): exact, with no difference of near equals."""
        error = x - self.x_star
        return float(error @ self.hessian @ error / 2)


class Point(nn.Module):
    """The model: a point x in R^d, starting at 0."""

    def __init__(self, dimension: int) -> None:
        super().__init__()
        self.x = nn.Parameter(torch.zeros(dimension, dtype=torch.float64))


class ShardQuadratic:
    """f_i as training data: one sample, which is (A_i, b_i)."""

    def __init__(self, a: Floats, b: Floats) -> None:
        self.a, self.b = torch.from_numpy(a.copy()), torch.from_numpy(b.copy())
        self.notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return 1

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        return self.a, self.b

    def digest(self) -> str:
        return hashlib.sha256(self.a.numpy().tobytes() + self.b.numpy().tobytes()).hexdigest()


class Quadratics(Task):
    """Full gradients, with Gaussian noise added to them if `gradient_noise` is above 0."""

    name = "quadratics"
    Options = QuadraticsOptions
    options: QuadraticsOptions

    def optimizer_defaults(self) -> Mapping[str, Any]:
        return {"name": "sgd", "lr": 0.1, "momentum": 0.0, "schedule": "constant"}

    def model(self) -> nn.Module:
        return Point(self.options.dimension)

    def data(self, site: Site) -> ShardQuadratic:
        require_common(site, self.name)
        problem = self.problem(site)
        return ShardQuadratic(problem.a[site.shard], problem.b[site.shard])

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        a, b = batch
        assert isinstance(model, Point)
        value: Tensor = (a @ model.x + b).square().sum()
        if self.options.gradient_noise == 0:
            return value
        std = (self.options.gradient_noise / self.options.dimension) ** 0.5
        tilt: Tensor = (torch.randn_like(model.x) * std) @ model.x
        return value.add(tilt - tilt.detach())  # adds the noise to the gradient, 0 to the value

    @property
    def is_random(self) -> bool:
        return self.options.gradient_noise > 0

    def gradients(
        self, model: nn.Module, batch: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Sequence[Tensor]] | None:
        """grad f_i(x) = 2 A_i^T (A_i x + b_i); noise is left to `loss`."""
        if self.options.gradient_noise > 0:
            return None
        a, b = batch
        assert isinstance(model, Point)
        residual = torch.addmv(b, a, model.x)
        return residual.dot(residual), (torch.mv(a.t(), residual.mul(2)),)

    def evaluate(self, model: nn.Module, site: Site) -> dict[str, Measured]:
        assert isinstance(model, Point)
        x = model.x.detach().cpu().numpy()
        problem = self.problem(site)
        return {
            "loss": Measured(problem.loss(x)),
            "suboptimality": Measured(problem.suboptimality(x)),
        }

    def problem(self, site: Site) -> Problem:
        """The quadratics of all the site's shards; equal on all peers."""
        return generate(self.options, site.shards, site.seed)


@lru_cache(maxsize=8)
def generate(options: QuadraticsOptions, shards: int, seed: int) -> Problem:
    """Draw the problem as B.4 says; steps (1) to (4) are its own.

    The sign follows its text: the optimum of f_i is the point x_i with A_i x_i + b_i = 0. Its
    binary search for s is not needed, because zeta^2 scales as s^2.
    """
    generator = np.random.default_rng([_STREAM, seed])
    d = options.dimension
    left, _, right = np.linalg.svd(generator.standard_normal((shards, d, d)))  # (1)
    a = left * _singular_values(options) @ right  # (2)
    optima = generator.standard_normal((shards, d))  # (3): s d_i with s = 1
    hessians = 2 * np.swapaxes(a, 1, 2) @ a
    mean_optimum = np.linalg.solve(hessians.sum(axis=0), np.einsum("nij,nj->i", hessians, optima))
    optima = optima - mean_optimum  # the global optimum is now at 0
    zeta_squared = float((np.einsum("nij,nj->ni", hessians, optima) ** 2).sum() / shards)
    if shards > 1:
        optima *= (options.heterogeneity / zeta_squared) ** 0.5
    direction = generator.standard_normal(d)  # (4)
    x_star = options.distance * direction / np.linalg.norm(direction)
    b = -np.einsum("nij,nj->ni", a, optima + x_star)
    return Problem(a, b, x_star)


def _singular_values(options: QuadraticsOptions) -> Floats:
    """Of every A_i, shape (d,): those that give the Hessian its eigenvalues, or as printed."""
    spread = np.linspace(options.strong_convexity, options.smoothness, options.dimension)
    return np.sqrt(spread / 2) if options.convention == "exact" else spread
