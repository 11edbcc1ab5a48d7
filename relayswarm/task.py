"""The contract between a run and what is learnt in it.

A task says which model is trained, on what data, with what loss, and how the result is measured.
Everything else (who exchanges what with whom, the optimizer, the order of the data, checkpoints)
is not its business. To write one, derive from `Task`, in a file that `task.file` in the run config
names (`relayswarm new` writes one), or in a package that names the class as an entry point in the
group `relayswarm.tasks`; `task.name` in the run config then finds it:

    class Regression(Task):
        name = "regression"

        def model(self):
            return torch.nn.Linear(4, 1)

        def data(self, site):
            x, y = load_my_table(site.data_dir)
            mine = torch.arange(site.shard, len(x), site.shards)
            return TensorData(x[mine], y[mine])

        def loss(self, model, batch):
            x, y = batch
            return torch.nn.functional.mse_loss(model(x), y)

        def evaluate(self, model, site):
            x, y = load_my_test_table(site.data_dir)
            return {"loss": Measured(float(self.loss(model, (x, y))), weight=len(x))}

This module does not import torch, so that options can be checked where no torch is wanted.
"""

from __future__ import annotations

import difflib
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from pydantic import BaseModel, ConfigDict, ValidationError

from relayswarm.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor, nn


class Options(BaseModel):
    """Base of a task's options: unknown keys are refused, values are immutable and finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


@dataclass(frozen=True, slots=True)
class Site:
    """Where a peer stands: which part of the data is its own, and where the files are.

    `shard` of `shards` (0 <= shard < shards) is this peer's part. `seed` is the run's: equal on
    all peers, so that all of them cut the data the same way. `alpha` is the Dirichlet parameter
    of the cut (None: even), `min_samples` the size below which no shard may fall. `data_dir` is
    this machine's data folder, None when the user named none; `peer_id` the peer's name. Where the
    data are local (`is_local`), all that lies in the folder is this peer's, and nothing is cut: the
    shard only tells this peer's random numbers from others'.
    """

    shard: int = 0
    shards: int = 1
    seed: int = 0
    alpha: float | None = None
    min_samples: int = 1
    data_dir: Path | None = None
    peer_id: str = ""
    is_local: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.shard < self.shards:
            raise ConfigError(
                "shard",
                self.shard,
                f"not below the number of shards, {self.shards}",
                f"choose one from 0 to {self.shards - 1}, or raise data.shards",
            )


@dataclass(frozen=True, slots=True)
class Measured:
    """A measured value and what it weighs in a mean over peers (e.g. samples it is a mean of)."""

    value: float
    weight: float = 1.0


class TaskData(Protocol):
    """The training samples of one shard. `TensorData` is one; anything with these members is."""

    @property
    def notes(self) -> Sequence[str]:
        """Remarks for the report, e.g. that the cut was drawn again to fill every shard."""

    def __len__(self) -> int:
        """Number of samples; at least one. A task without samples (full gradients) has one."""

    def batch(self, indices: Tensor) -> Any:
        """The samples at `indices` (int64, shape (b,)), in the form that `Task.loss` takes.

        Tensors, also inside tuples, lists and dicts, are moved to the training device.
        """

    def digest(self) -> str:
        """SHA-256 in hex of the shard's contents: two shards with equal digests are the same."""


class TensorData:
    """Samples held in tensors whose first dimensions agree; a batch is a tuple of their rows."""

    def __init__(self, *tensors: Tensor, notes: Sequence[str] = ()) -> None:
        sizes = [len(tensor) for tensor in tensors]
        if not sizes or min(sizes) != max(sizes) or sizes[0] == 0:
            raise ConfigError(
                "task.data", sizes, "tensors empty or of unequal length", "give one row per sample"
            )
        self.tensors = tensors
        self.notes = tuple(notes)

    def __len__(self) -> int:
        return len(self.tensors[0])

    def batch(self, indices: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor[indices] for tensor in self.tensors)

    def digest(self) -> str:
        import torch  # only here, to keep the rest of this module free of it

        total = hashlib.sha256()
        for tensor in self.tensors:
            total.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
            flat = tensor.detach().cpu().contiguous().reshape(-1)
            total.update(flat.view(torch.uint8).numpy().data)
        return total.hexdigest()


class Task(ABC):
    """What is learnt. See the top of this file for an example.

    `name` is how the run config calls it. `Options` is the pydantic model of `[task.options]`;
    the instance is in `self.options`. Peers build their tasks independently from the same
    config, and each from its own site, so nothing here may depend on anything else.
    """

    name: ClassVar[str]
    Options: ClassVar[type[BaseModel]] = Options
    options: Any

    def __init__(self, options: Mapping[str, Any] | None = None) -> None:
        """Raises ConfigError that names `task.options.KEY` if an option is unknown or wrong."""
        self.options = validate_options(self.Options, options or {}, "task.options")

    def optimizer_defaults(self) -> Mapping[str, Any]:
        """The optimizer that suits this task: keys of `[optimizer]` in the run config.

        What the run config sets goes first. Defaults hold for the optimizer they name: if the
        config chooses another one, only the schedule and the warm-up are kept.
        """
        return {"name": "sgd", "lr": 0.1}

    @abstractmethod
    def model(self) -> nn.Module:
        """A newly initialised model, in training mode.

        Draw what is random from torch's, numpy's or python's global generators: they are seeded
        equally on all peers, so that all start from the same point. All trainable parameters and
        float buffers must have one dtype. Parameters with `requires_grad = False` are never
        exchanged, nor are integer buffers.
        """

    @abstractmethod
    def data(self, site: Site) -> TaskData:
        """The training samples of `site.shard`. Every peer must cut the data the same way.

        Raises DataError when files are missing or damaged, ConfigError when the cut that the
        run config asks for is impossible.
        """

    @abstractmethod
    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """The training loss of `batch`: a scalar tensor with a gradient, a mean over samples.

        Its gradient is all that the optimizer sees. It may be stochastic (dropout, noise) if it
        draws from the global generators; each peer has its own state of them.
        """

    @property
    def is_random(self) -> bool:
        """Whether `loss` or `evaluate` may draw random numbers. Say False where they cannot: peers
        that share a process need not take turns with the global generators then."""
        return True

    def gradients(self, model: nn.Module, batch: Any) -> tuple[Tensor, Sequence[Tensor]] | None:  # noqa: ARG002
        """The loss of `batch` and its gradient for each trainable parameter, in the model's order,
        where they are known in closed form. None, the default, leaves them to autograd.

        Called without recording gradients. Must be what autograd makes of `loss`, up to rounding.
        """
        return None

    @abstractmethod
    def evaluate(self, model: nn.Module, site: Site) -> Mapping[str, Measured]:
        """Measure the model, usually on a test set common to all peers.

        Called in evaluation mode without gradients, on the training device. Keys become metrics;
        `loss` and `accuracy` (0 to 1) are shown live when they are there.
        """


def validate_options(model: type[BaseModel], values: Mapping[str, Any], field: str) -> Any:
    """`model` filled from `values`. Raises ConfigError that names `field.KEY` and the remedy."""
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        problem = error.errors()[0]
        name = ".".join([field, *(str(part) for part in problem["loc"])])
        remedy = _remedy(
            str(problem["loc"][-1]) if problem["loc"] else "", sorted(model.model_fields)
        )
        text = problem["msg"][0].lower() + problem["msg"][1:]
        if problem["type"] == "extra_forbidden":
            text = "unknown option"
        raise ConfigError(name, problem["input"], text, remedy) from error


def _remedy(key: str, known: list[str]) -> str:
    if key in known:
        return "see the task's documentation for what it may be"
    near = difflib.get_close_matches(key, known, n=1)
    if near:
        return f"did you mean {near[0]!r}?"
    return f"known options: {', '.join(known)}" if known else "this one takes no options"
