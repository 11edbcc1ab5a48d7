"""TASK_NAME: what is learnt, on what data, and how it is measured.

It works as it is: a small network learns from scikit-learn's 569 breast tissue samples, of 30
measurements each, which are malignant. Put your own model, data and loss in the place of these, and
after each change run

    relayswarm check FOLDER/run.toml

All peers import this file, and each calls the methods with a `site` of its own. They must agree:
draw random numbers from torch's global generators (which the run seeds), or from one of your own
that is seeded with `site.seed` or a constant.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from sklearn.datasets import load_breast_cancer
from torch import Tensor, nn
from torch.nn import functional as F

from relayswarm import Measured, Options, Site, Task, TensorData, partition


class CLASS_NAMEOptions(Options):
    """What [task.options] in run.toml may hold. Other keys and other types are refused."""

    hidden: int = 32  # width of the hidden layer


class CLASS_NAME(Task):
    """What the swarm learns."""

    name = "TASK_NAME"  # task.name in run.toml
    Options = CLASS_NAMEOptions

    def optimizer_defaults(self) -> Mapping[str, Any]:
        """The optimizer that suits this task: keys of [optimizer] in run.toml, which may change it.
        `name` is sgd, adam or adamw."""
        return {"name": "sgd", "lr": 0.1, "momentum": 0.9, "schedule": "cosine"}

    def model(self) -> nn.Module:
        """A new model. All peers start from the same one: the run seeds torch before each call.

        Prefer GroupNorm or LayerNorm to BatchNorm: its statistics differ from peer to peer as their
        data do.
        """
        width: int = self.options.hidden
        return nn.Sequential(nn.Linear(30, width), nn.ReLU(), nn.Linear(width, 2))

    def data(self, site: Site) -> TensorData:
        """The training samples of one peer: those of shard `site.shard` of `site.shards`.

        `partition` cuts by class labels, evenly or as one-sidedly as `data.alpha` in run.toml says.
        Where each machine has data of its own, read them from `site.data_dir` (--data-dir) instead.
        What is returned needs a length, `batch(indices)`, `digest()` and `notes`: TensorData has
        them for samples in tensors; see relayswarm.TaskData for data that do not fit in memory.
        """
        x, y = _split()[0]
        cut = partition(y.numpy(), site)
        mine = torch.from_numpy(cut.shards[site.shard])
        return TensorData(x[mine], y[mine], notes=cut.notes)

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """The mean loss of a batch (rows of the tensors in `data`): a scalar with a gradient."""
        x, y = batch
        return F.cross_entropy(model(x), y)

    def evaluate(self, model: nn.Module, site: Site) -> dict[str, Measured]:
        """Measure the model on test samples that no peer trains on. Called without gradients and in
        evaluation mode. `weight` is the number of samples that a value is a mean of."""
        del site  # the same test set everywhere
        device = next(model.parameters()).device
        x, y = (part.to(device) for part in _split()[1])
        logits = model(x)
        return {
            "loss": Measured(float(F.cross_entropy(logits, y)), weight=len(y)),
            "accuracy": Measured(float((logits.argmax(dim=1) == y).float().mean()), weight=len(y)),
        }


@lru_cache(maxsize=1)
def _split() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """((x, y) to train on, (x, y) to test on): x float32, shape (n, 30), y int64, shape (n,).

    The split has a constant seed, so that it is the same on all peers and in every run.
    """
    table = load_breast_cancer()
    x = torch.tensor(table.data, dtype=torch.float32)
    y = torch.tensor(table.target, dtype=torch.int64)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(1))
    test, train = order[:114], order[114:]
    mean, std = x[train].mean(dim=0), x[train].std(dim=0)
    x = (x - mean) / std
    return (x[train], y[train]), (x[test], y[test])
