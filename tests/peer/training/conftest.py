"""A small stochastic task, and torch's global settings put back after each test."""

import pytest
import torch
from torch import nn

from peer.training.trainer import Trainer, make_site
from relayswarm.config import RunConfig, parse
from relayswarm.task import Measured, Site, Task, TensorData


class Noisy(Task):
    """Regression with dropout and batch normalisation: random state and buffers matter."""

    name = "noisy"

    def optimizer_defaults(self):
        return {"lr": 0.05, "momentum": 0.9, "nesterov": True}

    def model(self) -> nn.Module:
        return nn.Sequential(
            nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 1)
        )

    def data(self, site: Site) -> TensorData:
        x = torch.randn(20, 3, generator=torch.Generator().manual_seed(site.shard))
        return TensorData(x, x.sum(dim=1, keepdim=True))

    def loss(self, model: nn.Module, batch):
        x, y = batch
        return (model(x) - y).square().mean()

    def evaluate(self, model: nn.Module, site: Site):
        x, y = self.data(site).tensors
        return {
            "loss": Measured(float(self.loss(model, (x, y))), weight=len(x)),
            "draw": Measured(float(torch.rand(()))),
            "training": Measured(float(model.training)),
        }


class Rig:
    """Makes trainers of the small task."""

    Task = Noisy

    @staticmethod
    def config(*overrides: str) -> RunConfig:
        return parse("", ["peers=4", "steps=20", "data.batch_size=6", *overrides])

    @classmethod
    def trainer(cls, *overrides: str, shard: int = 0, task: Task | None = None) -> Trainer:
        config = cls.config(*overrides)
        return Trainer(task or Noisy(), config, make_site(config, shard))


@pytest.fixture
def rig() -> type[Rig]:
    return Rig


@pytest.fixture(autouse=True)
def _torch_settings(torch_settings: None) -> None:
    """Trainers of deterministic runs change them."""
