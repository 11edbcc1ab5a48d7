"""The model and the optimizer of a program that trains by itself.

What belongs here: what a program's model has to be for a swarm, and what of its optimizer, and the
scaler of its gradients, goes into a checkpoint. Rate, data and random state are the program's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from peer.training.flat import FlatModel
from peer.training.learner import Learner, TrainerState, evaluating
from peer.training.promises import require_measured
from relayswarm.config import RunConfig
from relayswarm.errors import ConfigError
from relayswarm.task import Measured, Site

Evaluate = Callable[[nn.Module], Mapping[str, Measured]]

DTYPES = (torch.float32, torch.float64)


class ProgramModel(Learner):
    """A model that a program trains with its own optimizer; its parameters become views into one
    vector. `check_program` has found no fault. Raises ConfigError for a model that cannot be stored
    so, or an optimizer that is not deterministic in a run that is."""

    def __init__(
        self,
        config: RunConfig,
        site: Site,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        evaluate: Evaluate | None = None,
        scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        if config.privacy.clip is not None:
            problem = "the movements of a program with a loop of its own are not clipped"
            remedy = "leave it out, and take an optimizer that clips and adds noise, as Opacus's do"
            raise ConfigError("privacy.clip", config.privacy.clip, problem, remedy)
        self.config, self.site = config, site
        self.optimizer, self.scaler = optimizer, scaler
        self._evaluate = evaluate
        self.device = next(iter(model.parameters()), torch.empty(0)).device
        if config.deterministic:
            _make_deterministic(optimizer)
        try:
            self.flat = FlatModel(model, config.share)
        except ConfigError as error:
            raise _of_model(error) from error

    @property
    def lr(self) -> float:
        """The rate of now, of the first group of parameters."""
        return float(self.optimizer.param_groups[0]["lr"])

    def check_views(self) -> None:
        """Raise ConfigError if the model was moved, or a tensor of it replaced."""
        try:
            self.flat.check_views()
        except ConfigError as error:
            raise _of_model(error) from error

    def evaluate(self) -> dict[str, Measured]:
        if self._evaluate is None:
            return {}
        with evaluating(self.flat.module):
            return require_measured(self._evaluate(self.flat.module), field="evaluate")

    def state(self) -> TrainerState:
        tensors = {"vector": self.flat.vector.clone()}
        tensors |= {f"local/{name}": t.clone() for name, t in self.flat.local_tensors().items()}
        values = {
            "fingerprint": self.fingerprint,
            "optimizer": type(self.optimizer).__name__,
            "optimizer_state": _packed(self.optimizer.state_dict(), "optimizer", tensors),
        }
        if self.scaler is not None:
            values["scaler"] = _packed(self.scaler.state_dict(), "scaler", tensors)
        return TrainerState(tensors, values)

    def load_state(self, state: TrainerState) -> None:
        own = {"fingerprint": self.fingerprint, "optimizer": type(self.optimizer).__name__}
        for key, value in own.items():
            found = state.values.get(key)
            if found != value:
                raise ConfigError(
                    f"checkpoint {key}",
                    found,
                    f"this program has {value!r}",
                    "resume with the model and optimizer the run was started with",
                )
        try:
            self.optimizer.load_state_dict(
                _unpacked(state.values["optimizer_state"], state.tensors)
            )
            scale = _unpacked(state.values.get("scaler"), state.tensors)
            if self.scaler is not None and scale:  # none was there, or it was switched off
                self.scaler.load_state_dict(scale)
            kept = {"vector": self.flat.vector}
            kept |= {f"local/{name}": t for name, t in self.flat.local_tensors().items()}
            for name, tensor in kept.items():
                tensor.copy_(state.tensors[name].view(tensor.shape))
        except (LookupError, TypeError, ValueError, RuntimeError) as error:
            raise ConfigError(
                "checkpoint",
                " ".join(sorted(state.tensors))[:80],
                f"its contents are not those of this program ({type(error).__name__}: {error})",
                "restore one from a copy, or start in an empty folder",
            ) from error


def check_program(
    model: nn.Module, optimizer: torch.optim.Optimizer, scaler: object = None
) -> None:
    """Raise ConfigError for what no run can use: to be called before anything is joined."""
    if not isinstance(model, nn.Module):
        kind = type(model).__name__
        raise ConfigError("model", kind, "not a torch.nn.Module", "give the module that you train")
    _refuse_sharded(model)
    places: dict[torch.device, str] = {}
    for name, parameter in model.named_parameters():
        places.setdefault(parameter.device, name)
        if parameter.requires_grad and parameter.dtype not in DTYPES:
            raise ConfigError(
                "model",
                name,
                f"is {parameter.dtype}, in which small steps and means are lost",
                "keep parameters in float32, and compute in less within torch.autocast",
            )
    if len(places) > 1:
        first, second, *_ = (f"{name} on {device}" for device, name in places.items())
        problem, remedy = f"{first}, {second}", "put the whole model on one device"
        raise ConfigError("model", type(model).__name__, problem, remedy)
    if not isinstance(optimizer, torch.optim.Optimizer):
        kind = type(optimizer).__name__
        raise ConfigError("optimizer", kind, "not a torch.optim.Optimizer", "give the one you use")
    if scaler is not None and not isinstance(scaler, torch.amp.GradScaler):
        kind = type(scaler).__name__
        raise ConfigError("scaler", kind, "not a torch.amp.GradScaler", "give the one you use")
    own = {id(parameter) for parameter in model.parameters()}
    if not any(id(p) in own for group in optimizer.param_groups for p in group["params"]):
        raise ConfigError(
            "optimizer",
            type(optimizer).__name__,
            "has no parameter of this model",
            "make it of model.parameters(), after the model was moved to its device",
        )


def _refuse_sharded(model: nn.Module) -> None:
    """FSDP of both kinds: of a wrapper around modules, and of parameters that are DTensors."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.tensor import DTensor

    found = [name for name, m in model.named_modules() if isinstance(m, FullyShardedDataParallel)]
    found += [name for name, p in model.named_parameters() if isinstance(p, DTensor)]
    if found:
        raise ConfigError(
            "model",
            found[0] or type(model).__name__,
            "is sharded over ranks, as FSDP does, and models are averaged whole",
            "use DistributedDataParallel",
        )


def _make_deterministic(optimizer: torch.optim.Optimizer) -> None:
    """Kernels over several tensors at once group them as it suits the device."""
    for number, group in enumerate(optimizer.param_groups):
        for key in ("foreach", "fused"):
            if group.get(key):
                raise ConfigError(
                    f"optimizer.param_groups[{number}]['{key}']",
                    group[key],
                    "its results depend on more than its inputs, and this run is deterministic",
                    f"give the optimizer {key}=False, or set deterministic = false",
                )
            if key in group:
                group[key] = False  # torch may choose either where it is None


def _of_model(error: ConfigError) -> ConfigError:
    """What is wrong with a task's model is wrong with a program's."""
    field = "model" if error.field == "task.model" else error.field
    return ConfigError(field, error.value, error.problem, error.remedy)


def _packed(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """As JSON; tensors, which take their names from where they are, go into `tensors`."""
    if isinstance(value, Tensor):
        tensors[name] = value.detach().clone()
        return {"tensor": name}
    if isinstance(value, Mapping):
        entries = [[key, _packed(inner, f"{name}/{key}", tensors)] for key, inner in value.items()]
        return {"mapping": entries}
    if isinstance(value, list | tuple):
        return {"list": [_packed(inner, f"{name}/{k}", tensors) for k, inner in enumerate(value)]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ConfigError(
        name.replace("/", "."),
        type(value).__name__,
        "cannot be written into a checkpoint",
        "leave state_dir out, or use an optimizer whose state is tensors and numbers",
    )


def _unpacked(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """What `_packed` was given. Raises LookupError or TypeError for anything else."""
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content].clone()
    if kind == "mapping":
        return {key: _unpacked(inner, tensors) for key, inner in content}
    if kind == "list":
        return [_unpacked(inner, tensors) for inner in content]
    raise LookupError(f"no {kind!r} is expected there")
