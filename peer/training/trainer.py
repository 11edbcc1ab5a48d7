"""A peer's local training: optimizer steps on the live vector, evaluation, state for checkpoints.

Results depend only on the config, the site and the vector: the order of the data and the rate are
functions of the step, and random state belongs to the trainer. Trainers that share a process get
the results they would get alone. A trainer is used from one thread at a time.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from peer.training import optimizer as optimizers
from peer.training.flat import FlatModel
from peer.training.learner import Learner, TrainerState, TrainResult, evaluating
from peer.training.movement import movement_of
from peer.training.order import DataOrder
from peer.training.precision import MixedPrecision
from peer.training.promises import (
    require_measured,
    require_module,
    require_samples,
    require_scalar,
)
from peer.training.random_state import RandomState, derive_seed
from relayswarm.config import RunConfig
from relayswarm.errors import ConfigError
from relayswarm.task import Measured, Site, Task, TaskData

QUASI_GLOBAL_MOMENTUM = 0.9  # unless algorithm.momentum says otherwise


def make_site(
    config: RunConfig,
    shard: int,
    data_dir: Path | None = None,
    peer_id: str = "",
    *,
    needs_data: bool = True,
) -> Site:
    """The site of the peer that holds `shard` in this run. Raises ConfigError if its data are
    local, it needs them, and nobody says where."""
    if needs_data and config.data.is_local and data_dir is None:
        problem = "with data.partition = 'local' each site has data of its own"
        remedy = "give the folder where they are: --data-dir DIR"
        raise ConfigError("--data-dir", None, problem, remedy)
    return Site(
        shard=shard,
        shards=config.shards,
        seed=config.seed,
        alpha=config.data.alpha,
        min_samples=config.data.min_samples,
        data_dir=data_dir,
        peer_id=peer_id,
        is_local=config.data.is_local,
    )


def folder_of(config: RunConfig, data_dir: Path | None, peer_id: str) -> Path | None:
    """A peer's data, of peers that are all on this machine: each has a subfolder of its own name,
    where data are local."""
    return data_dir / peer_id if data_dir and config.data.is_local else data_dir


class Trainer(Learner):
    """Local training of one peer on a task.

    The model starts from the run's seed alone, so all peers start equal; what is random in
    training comes from (seed, shard). Raises ConfigError or DataError when the task cannot be
    trained as the config says.
    """

    def __init__(
        self, task: Task, config: RunConfig, site: Site, device: torch.device | str = "cpu"
    ) -> None:
        if config.deterministic:
            make_deterministic()
        self.task, self.config, self.site = task, config, site
        self.device = _usable_device(device)
        self.settings = optimizers.of_run(config, task.optimizer_defaults())
        with self._random_state("model"):
            module = require_module(task.model())
        self.flat = FlatModel(module.to(self.device), config.share)
        self.data = self.data_of(site)
        self._random = self._random_state("training", site.shard)
        self._order = DataOrder(config.seed, site.shard, len(self.data), config.data.batch_size)
        self._parameters = self.flat.parameters
        self._optimizer = optimizers.build(self.settings, self._parameters)
        self._step = optimizers.bare_step(self._optimizer)
        autocast = self.settings.autocast
        self._mixed = MixedPrecision(autocast, self.device) if autocast else None
        self.movement = movement_of(
            config.privacy,
            tuple(spec.name for spec in self.flat.layout if spec.role == "buffer"),
            partial(derive_seed, "noise", config.seed, site.shard)
            if config.deterministic
            else None,
        )

    def data_of(self, site: Site) -> TaskData:
        """The training samples of a site. Raises ConfigError if the task gives none."""
        with self._random_state("data", site.shard):
            return require_samples(self.task.data(site), site)

    @property
    def samples(self) -> int:
        """Number of training samples of this site."""
        return len(self.data)

    @property
    def notes(self) -> Sequence[str]:
        return tuple(getattr(self.data, "notes", ()))

    def data_digest(self) -> str:
        return self.data.digest()

    def lr(self, step: int) -> float:
        """The schedule's rate at `step`, before any scale."""
        return self.settings.rate(step, self.config.steps)

    def train(
        self,
        step: int,
        lr_scale: Any = 1,
        momentum: Tensor | None = None,
        local_steps: Iterable[int] | None = None,
        at: int | None = None,
    ) -> TrainResult:
        """Take the local steps of `step` on the live vector; `lr_scale` multiplies the rate, which
        is that of the schedule's step `at`, or None: of `step`.

        `local_steps` are their numbers, counted over the whole run, which decide on the samples;
        None means the run's own number of them, before which every step had as many. Each is asked
        for after the one before: see `settle`.
        `momentum` (laid out like the vector) takes the place of the optimizer's own momentum as
        quasi-global momentum, and is not changed. With adam it is the last movement of the averaged
        model over the rate, which both moments gather once. Raises ConfigError if the optimizer is
        another than sgd and adam, if the model's tensors are no longer views into the vector, or if
        the task's loss is not a scalar with a gradient.
        """
        started = time.perf_counter()
        self.flat.check_views()
        lr = self.lr(step if at is None else at) * float(lr_scale)
        count = self.config.algorithm.local_steps
        draws = local_steps or range(step * count, (step + 1) * count)
        momenta = None if momentum is None else self._quasi_global(momentum)
        before = None if self.movement is None else self.flat.vector.clone()
        try:
            with self._random if self.task.is_random else nullcontext():
                losses = [self._local_step(draw, lr, momenta) for draw in draws]
            loss = float(losses[0] if len(losses) == 1 else torch.stack(losses).double().mean())
            if self.movement is not None and before is not None:
                self.movement.release(before, self.flat.vector, step)
        except BaseException:
            if before is not None:
                self.flat.vector.copy_(before)  # nobody may read what was not released
            raise
        seconds = time.perf_counter() - started
        return TrainResult(loss if math.isfinite(loss) else math.nan, lr, seconds, len(losses))

    def settle(self) -> None:
        """Wait until what was asked of the device is computed."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def evaluate(
        self, vector: Tensor | None = None, site: Site | None = None
    ) -> dict[str, Measured]:
        """Measure the live model, or the model that `vector` (laid out alike) is, at this trainer's
        site or another.

        In evaluation mode, without gradients, from a random state of its own that is the same at
        every call. Vector, modes and training's random state are left as they were. Raises
        ConfigError if the task gives no measurements by name.
        """
        self.flat.check_views()
        module = self.flat.module
        kept = self.flat.vector.clone() if vector is not None else None
        try:
            if vector is not None:
                self.flat.vector.copy_(vector)
            with evaluating(module), self._for_evaluation():
                return require_measured(self.task.evaluate(module, site or self.site))
        finally:
            if kept is not None:
                self.flat.vector.copy_(kept)

    def state(self) -> TrainerState:
        """A copy of the vector, local buffers, optimizer and random state."""
        random_tensors, random_values = self._random.state()
        tensors = {"vector": self.flat.vector.clone()}
        tensors |= {f"local/{name}": t.clone() for name, t in self.flat.local_tensors().items()}
        tensors |= {f"random/{name}": t for name, t in random_tensors.items()}
        for index, entry in self._optimizer.state_dict()["state"].items():
            for key, value in entry.items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer/{index}/{key}"] = value.clone()
        values = {
            "fingerprint": self.fingerprint,
            "optimizer": self.settings.name,
            "random": random_values,
        }
        if self._mixed is not None:
            values["scaler"] = self._mixed.state()
        return TrainerState(tensors, values)

    def load_state(self, state: TrainerState) -> None:
        """Go on from `state`. Raises ConfigError if it is of another model or optimizer."""
        for key, own in (("fingerprint", self.fingerprint), ("optimizer", self.settings.name)):
            found = state.values.get(key)
            if found != own:
                raise ConfigError(
                    f"checkpoint {key}",
                    found,
                    f"this run has {own!r}",
                    "resume with the config the run was started with",
                )
        try:
            self._take_over(state)
        except (LookupError, TypeError, ValueError, OverflowError, RuntimeError) as error:
            raise ConfigError(
                "checkpoint",
                " ".join(sorted(state.tensors))[:80],
                f"its contents are not those of this run ({type(error).__name__}: {error})",
                "restore one from a copy, or start in an empty folder",
            ) from error

    def _take_over(self, state: TrainerState) -> None:
        own = {"vector": self.flat.vector}
        own |= {f"local/{name}": tensor for name, tensor in self.flat.local_tensors().items()}
        for name, tensor in own.items():
            _copy(state.tensors[name], tensor, name)
        self._load_optimizer(_under("optimizer/", state.tensors))
        self._random.load_state(_under("random/", state.tensors), state.values["random"])
        if self._mixed is not None:
            self._mixed.load_state(state.values["scaler"])
        with self._random:  # is it one that generators take?
            pass

    def _local_step(self, draw: int, lr: float, momenta: Sequence[Tensor] | None) -> Tensor:
        batch = to_device(self.data.batch(self._order.indices(draw)), self.device)
        loss = self._gradients(batch)
        if momenta is None:
            for group in self._optimizer.param_groups:
                group["lr"] = lr
            with torch.no_grad():
                if self._mixed is None:
                    self._step()
                else:
                    self._mixed.step(self._optimizer, self._step)
        else:
            self._quasi_global_step(lr, momenta)
        return loss

    def _gradients(self, batch: Any) -> Tensor:
        """Leave the gradient of `batch` in the parameters' `grad` (times the scale, in mixed
        precision); returns the loss."""
        if self._mixed is not None:
            return self._mixed_gradients(batch, self._mixed)
        with torch.no_grad():
            known = self.task.gradients(self.flat.module, batch)
        if known is not None:
            loss, gradients = known
            for parameter, gradient in zip(self._parameters, gradients, strict=True):
                parameter.grad = gradient
            return loss
        for parameter in self._parameters:
            parameter.grad = None
        loss = self.task.loss(self.flat.module, batch)
        require_scalar(loss)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def _mixed_gradients(self, batch: Any, mixed: MixedPrecision) -> Tensor:
        for parameter in self._parameters:
            parameter.grad = None
        with mixed.computing():
            loss = self.task.loss(self.flat.module, batch)
        require_scalar(loss)
        mixed.backward(loss)
        return loss.detach()

    def _quasi_global(self, momentum: Tensor) -> Sequence[Tensor]:
        """Quasi-global momentum by parameter; with adam, gathered."""
        if self.settings.name == "adamw":
            raise ConfigError(
                "optimizer.name",
                self.settings.name,
                "cannot be combined with quasi-global momentum",
                "set it to sgd or adam, or choose another algorithm",
            )
        if self.flat.local_parameters:
            raise ConfigError(
                "share.exclude",
                list(self.config.share.exclude),
                "leaves trainable parameters out, and quasi-global momentum is of what is averaged",
                "share all that is trained, or choose another algorithm",
            )
        if self._mixed is not None and self._mixed.scaler.is_enabled():
            problem = "its scaled gradients do not go with quasi-global momentum"
            remedy = "set it to bfloat16, or choose another algorithm"
            raise ConfigError("optimizer.autocast", self.settings.autocast, problem, remedy)
        specs = [spec for spec in self.flat.layout if spec.role == "parameter"]
        momenta = [self.flat.part(momentum, spec) for spec in specs]
        if self.settings.name == "adam":
            betas = self.settings.betas
            optimizers.gather_movement(self._optimizer, self._parameters, momenta, betas)
        return momenta

    def _quasi_global_step(self, lr: float, momenta: Sequence[Tensor]) -> None:
        betas, decay = self.settings.betas, self.settings.weight_decay
        if self.settings.name == "adam":
            optimizers.quasi_global_adam_step(self._optimizer, self._parameters, lr, betas, decay)
            return
        chosen = self.config.algorithm.momentum
        beta = QUASI_GLOBAL_MOMENTUM if chosen is None else chosen
        optimizers.quasi_global_step(self._parameters, momenta, lr, beta, decay)

    def _load_optimizer(self, tensors: Mapping[str, Tensor]) -> None:
        entries: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            index, _, key = name.partition("/")
            if tensor.numel() not in (1, self._parameters[int(index)].numel()):
                raise ValueError(f"optimizer/{name} has {tensor.numel()} elements")
            entries.setdefault(int(index), {})[key] = tensor.clone()
        self._optimizer.load_state_dict({**self._optimizer.state_dict(), "state": entries})

    def _for_evaluation(self) -> AbstractContextManager[object]:
        return self._random_state("evaluation") if self.task.is_random else nullcontext()

    def _random_state(self, purpose: str, *parts: int) -> RandomState:
        return RandomState(derive_seed(purpose, self.config.seed, *parts), self.device)


def make_deterministic() -> None:
    """Pin this process: deterministic kernels and one intra-op thread."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)


def to_device(batch: Any, device: torch.device) -> Any:
    """`batch` with its tensors on `device`, also those inside tuples, lists and dicts."""
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, dict):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(to_device(value, device) for value in batch))
    if isinstance(batch, tuple | list):
        return type(batch)(to_device(value, device) for value in batch)
    return batch


def _usable_device(device: torch.device | str) -> torch.device:
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            "device", str(device), "this torch cannot use it", "use cpu, or cuda on a GPU machine"
        ) from error


def _copy(found: Tensor, own: Tensor, name: str) -> None:
    if found.shape != own.shape:
        raise ValueError(f"{name} has shape {tuple(found.shape)}, not {tuple(own.shape)}")
    own.copy_(found)


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
