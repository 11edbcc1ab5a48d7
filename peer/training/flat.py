"""One flat vector of which the shared part of a model are views.

Nothing is copied to gather a model for sending or to put an average in place: training moves the
vector and the driver writes into it. The vector holds the trainable parameters, then the float
buffers (BatchNorm statistics and the like), each in the model's order; of both those that are
shared, which is all of them unless the run config says otherwise (`peer.training.sharing`). Tied
tensors are in it once, under their first name; empty ones are nowhere.

The fingerprint covers what peers have in common: peers with unequal fingerprints do not train the
same model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn

from peer.training.sharing import Named, Role, sort
from relayswarm.config import ShareConfig
from relayswarm.errors import ConfigError

WHOLE = ShareConfig()


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor's place in the flat vector: elements [offset, offset + size)."""

    name: str
    shape: tuple[int, ...]
    offset: int
    role: Role

    @property
    def size(self) -> int:
        return torch.Size(self.shape).numel()


@dataclass(frozen=True, slots=True)
class _View:
    """A name under which the model reaches a part of the vector; tied tensors have several."""

    spec: TensorSpec
    name: str
    owner: nn.Module

    @property
    def tensor(self) -> Tensor | None:
        value = getattr(self.owner, self.name.rpartition(".")[2], None)
        return value if isinstance(value, Tensor) else None


class FlatModel:
    """A model whose shared parameters and float buffers are views into `vector`, shape (d,).

    Elements [0, parameters_end) are the parameters, the rest float buffers. `vector` is the same
    tensor for life: write into it, never replace it. `shared_names` are those of the tensors in it,
    None where all that is trained is shared. Raises ConfigError for a model that cannot
    be stored so; the message names the tensor.
    """

    def __init__(self, module: nn.Module, share: ShareConfig = WHOLE) -> None:
        self.module = module
        _refuse_uninitialised(module)
        sharing = sort(module, share)
        tensors = [(*entry, _PARAMETER) for entry in sharing.parameters]
        tensors += [(*entry, _BUFFER) for entry in sharing.buffers]
        _refuse_mixed(tensors)
        _refuse_shared_memory(chain(*sharing.trained))
        self.layout = _lay_out(tensors)
        self.parameters_end = sum(spec.size for spec in self.layout if spec.role == "parameter")
        first = tensors[0][1]
        size = sum(spec.size for spec in self.layout)
        self.vector = torch.empty(size, dtype=first.dtype, device=first.device)
        self.fingerprint = sharing.fingerprint
        self.shared_names = None if sharing.is_whole else sharing.names
        self._trained = _names(sharing.parameters, sharing.local_parameters)
        self._local_parameters = _names(sharing.local_parameters)
        self._local_buffers = {name for names, _ in sharing.local_buffers for name in names}
        self._views = self._attach(tensors)

    @property
    def parameters(self) -> list[Tensor]:
        """The trainable parameters, local ones included, in the model's order."""
        return [p for name, p in self.module.named_parameters() if name in self._trained]

    @property
    def local_parameters(self) -> list[Tensor]:
        """The trainable parameters that are not in the vector."""
        return [p for name, p in self.module.named_parameters() if name in self._local_parameters]

    def part(self, vector: Tensor, spec: TensorSpec) -> Tensor:
        """The view of `vector` (laid out like the model, shape (d,)) that is `spec`'s tensor."""
        return vector[spec.offset : spec.offset + spec.size].view(spec.shape)

    def check_views(self) -> None:
        """Raise ConfigError if a tensor of the model is no longer its view into the vector.

        It happens when a model is moved (`.to()`), when a parameter is replaced, or when a
        module assigns a new tensor to a buffer in place of writing into it.
        """
        for view in self._views:
            tensor = view.tensor
            if tensor is None or not self._is_in_place(tensor, view.spec):
                raise ConfigError(
                    "task.model",
                    view.name,
                    "was moved or replaced after training began",
                    "write into tensors in place (copy_), and never move the model",
                )

    def local_tensors(self) -> dict[str, Tensor]:
        """What stays with this peer and changes there, by name: integer buffers, and whatever else
        is not shared."""
        named = {name: p.detach() for name, p in self.module.named_parameters()}
        local = {name: named[name] for name in named if name in self._local_parameters}
        buffers = self.module.named_buffers(remove_duplicate=False)
        return local | {name: buffer for name, buffer in buffers if name in self._local_buffers}

    def state_dict(self) -> dict[str, Tensor]:
        """The model by the names of its own `state_dict`: detached views, no copies."""
        return {name: tensor.detach() for name, tensor in self.module.state_dict().items()}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy tensors by name (as `state_dict` gives them) into the model, all or none missing.

        Raises ConfigError that names what is missing, unexpected or of another shape.
        """
        own = self.module.state_dict()
        for name in sorted(own.keys() ^ tensors.keys()):
            problem = "is missing" if name in own else "is not in this model"
            raise ConfigError("model tensors", name, problem, "load a model of the same task")
        for name, tensor in tensors.items():
            if tensor.shape != own[name].shape:
                shapes = f"has shape {tuple(tensor.shape)}, not {tuple(own[name].shape)}"
                raise ConfigError("model tensors", name, shapes, "load a model of the same task")
        with torch.no_grad():
            for name, tensor in tensors.items():
                own[name].copy_(tensor)

    def _attach(self, tensors: list[tuple[Sequence[str], Tensor, Role]]) -> list[_View]:
        views = []
        by_name = {spec.name: spec for spec in self.layout}
        for names, tensor, _ in tensors:
            if tensor.numel() == 0:
                continue
            spec = by_name[names[0]]
            place = self.part(self.vector, spec)
            place.copy_(tensor.detach())
            tensor.data = place
            for name in names:
                owner = self.module.get_submodule(name.rpartition(".")[0])
                views.append(_View(spec, name, owner))
        return views

    def _is_in_place(self, tensor: Tensor, spec: TensorSpec) -> bool:
        address = self.vector.data_ptr() + spec.offset * self.vector.element_size()
        return (
            tensor.data_ptr() == address
            and tuple(tensor.shape) == spec.shape
            and tensor.dtype == self.vector.dtype
            and tensor.device == self.vector.device
        )


_PARAMETER: Role = "parameter"
_BUFFER: Role = "buffer"


def _names(*groups: Iterable[Named]) -> frozenset[str]:
    """First names of all that are not empty."""
    return frozenset(names[0] for names, tensor in chain(*groups) if tensor.numel())


def _lay_out(tensors: list[tuple[Sequence[str], Tensor, Role]]) -> tuple[TensorSpec, ...]:
    specs, offset = [], 0
    for names, tensor, role in tensors:
        if tensor.numel():
            specs.append(TensorSpec(names[0], tuple(tensor.shape), offset, role))
            offset += tensor.numel()
    return tuple(specs)


def _refuse_uninitialised(module: nn.Module) -> None:
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if nn.parameter.is_lazy(tensor):
            raise ConfigError(
                "task.model", name, "is not initialised", "run a lazy model once in Task.model"
            )


def _refuse_mixed(tensors: list[tuple[Sequence[str], Tensor, Role]]) -> None:
    first_names, first, _ = tensors[0]
    for names, tensor, _ in tensors:
        if tensor.is_complex():
            raise ConfigError("task.model", names[0], "is complex", "use two real tensors")
        if tensor.dtype != first.dtype:
            raise ConfigError(
                "task.model",
                names[0],
                f"is {tensor.dtype} while {first_names[0]} is {first.dtype}",
                "give all that is shared one dtype, or name one of them in share.exclude",
            )


def _refuse_shared_memory(tensors: Iterable[Named]) -> None:
    seen: dict[int, str] = {}
    for names, tensor in tensors:
        if tensor.numel() == 0:
            continue
        other = seen.setdefault(tensor.data_ptr(), names[0])
        if other != names[0]:
            raise ConfigError(
                "task.model",
                names[0],
                f"shares memory with {other} but is another tensor",
                "tie them by assigning the same Parameter",
            )
