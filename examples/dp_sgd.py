"""The built-in digits, trained by DP-SGD: gradients of single samples are clipped and noised in
every local step, by Opacus (`pip install "relayswarm[privacy]"`).

    relayswarm up --peers 4 --set task.file=examples/dp_sgd.py --task private-digits

Each local step takes the mean over a batch of samples' gradients, each of norm `max_grad_norm` at
most, with normal noise. `epsilon` is that of Opacus's accountant for the samples of this site:
neighbours differ in one sample. It takes batches for drawn sample by sample at random (Poisson),
while relayswarm shuffles and cuts, as most users of DP-SGD do: so it is an estimate, not a bound.
"""

from __future__ import annotations

from typing import Any

import torch
from opacus import GradSampleModule
from opacus.accountants import RDPAccountant
from opacus.optimizers import DPOptimizer
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from peer.tasks.classification import SampleOptions
from peer.tasks.digits import Digits
from relayswarm.task import Site, TaskData


class PrivateOptions(SampleOptions):
    """`[task.options]`"""

    noise_multiplier: float = Field(default=1.0, gt=0)
    max_grad_norm: float = Field(default=1.0, gt=0)


class PrivateDigits(Digits):
    """Digits whose loss has DP-SGD's gradient in the place of its own."""

    name = "private-digits"
    Options = PrivateOptions
    options: PrivateOptions

    def __init__(self, options: Any) -> None:
        super().__init__(options)
        self.accountant = RDPAccountant()
        self._samples = 1
        self._wrapped: GradSampleModule | None = None

    def data(self, site: Site) -> TaskData:
        found = super().data(site)
        self._samples = len(found)
        return found

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        wrapped = self._wrap(model)
        optimizer = DPOptimizer(
            torch.optim.SGD(model.parameters(), lr=1.0),
            noise_multiplier=self.options.noise_multiplier,
            max_grad_norm=self.options.max_grad_norm,
            expected_batch_size=len(batch[1]),
        )
        loss = cross_entropy(*self.predictions(wrapped, *batch))
        loss.backward()  # leaves each sample's gradient in `grad_sample`
        optimizer.pre_step()  # clips, adds up, adds noise
        private = [parameter.grad.clone() for parameter in model.parameters()]
        optimizer.zero_grad()
        self.accountant.step(
            noise_multiplier=self.options.noise_multiplier,
            sample_rate=min(1.0, len(batch[1]) / self._samples),
        )
        pairs = zip(model.parameters(), private, strict=True)
        return loss.detach() + sum(((p - p.detach()) * gradient).sum() for p, gradient in pairs)

    def epsilon(self, delta: float = 1e-5) -> float:
        """Of all local steps so far."""
        return float(self.accountant.get_epsilon(delta))

    def _wrap(self, model: nn.Module) -> GradSampleModule:
        if self._wrapped is None or self._wrapped._module is not model:
            self._wrapped = GradSampleModule(model)
        return self._wrapped
