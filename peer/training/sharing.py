"""Which tensors of a model peers have in common, which are a peer's own, and which must be equal.

What is where, by `share.include` and `share.exclude`, which match the names of a tensor; a tied
tensor has several, and one that matches is enough:

    shared   trainable parameters and float buffers that the model saves, included and not excluded
    local    other trainable parameters and saved buffers: trained or written by their peer alone
    frozen   parameters with `requires_grad = False` that are not excluded: never exchanged, but
             equal on all peers (the base that adapters are trained on)

Frozen parameters that are excluded are a peer's own affair, and buffers that the model does not
save nobody's.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from xxhash import xxh3_64

from relayswarm.config import ShareConfig
from relayswarm.errors import ConfigError

Role = Literal["parameter", "buffer"]
Named: TypeAlias = tuple[Sequence[str], Tensor]
"""A tensor once, with all its names, in the model's order."""

LOWER_HALF = (1 << 32) - 1
"""Of a fingerprint: a hash of what is frozen, if anything is, so that the coordinator can say which
of the two differs (`JoinRequest.model_fingerprint`)."""

NEAREST = 3  # names that an unknown pattern is answered with


@dataclass(frozen=True, slots=True)
class Sharing:
    """The tensors of one model, sorted; of parameters and buffers those that are shared, and the
    first names of what is local."""

    parameters: Sequence[Named]
    buffers: Sequence[Named]
    local_parameters: Sequence[Named]
    local_buffers: Sequence[Named]
    frozen: Sequence[Named]
    fingerprint: int

    @property
    def names(self) -> frozenset[str]:
        """All names of what is shared."""
        return frozenset(name for names, _ in (*self.parameters, *self.buffers) for name in names)

    @property
    def trained(self) -> tuple[Sequence[Named], ...]:
        """All trainable parameters and saved float buffers, shared and local ones."""
        local = [one for one in self.local_buffers if is_float(one[1])]
        return self.parameters, self.local_parameters, self.buffers, local

    @property
    def is_whole(self) -> bool:
        """Whether all that is trained is shared, statistics included."""
        _, parameters, _, buffers = self.trained
        return not parameters and not buffers


def sort(module: nn.Module, share: ShareConfig) -> Sharing:
    """What is what in a model. Raises ConfigError for a pattern that matches nothing, and where
    nothing that is trained would be shared."""
    parameters = list(_once(module.named_parameters(remove_duplicate=False)))
    trained = [one for one in parameters if one[1].requires_grad]
    if not trained:
        raise ConfigError(
            "task.model", type(module).__name__, "has no trainable parameter", "nothing to do"
        )
    buffers = list(_once(saved_buffers(module)))
    floats = [one for one in buffers if is_float(one[1])]
    tensors = [*parameters, *buffers]
    _require_known("share.include", share.include, [*trained, *floats], tensors)
    _require_known("share.exclude", share.exclude, tensors, ())

    def is_shared(one: Named) -> bool:
        return _matches(one, share.include) and not _matches(one, share.exclude)

    shared = [one for one in trained if is_shared(one)]
    if not shared:
        raise ConfigError(
            "share.exclude",
            list(share.exclude),
            "leaves no trainable parameter for the swarm to average",
            "exclude less, or include more",
        )
    frozen = [
        one for one in parameters if not one[1].requires_grad and not _matches(one, share.exclude)
    ]
    return Sharing(
        parameters=shared,
        buffers=[one for one in floats if is_shared(one)],
        local_parameters=[one for one in trained if not is_shared(one)],
        local_buffers=[one for one in buffers if not (is_float(one[1]) and is_shared(one))],
        frozen=frozen,
        fingerprint=_fingerprint(module, [*shared, *filter(is_shared, buffers)], frozen),
    )


def saved_buffers(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Those that are in the model's `state_dict`, under each of their names."""
    saved = module.state_dict(keep_vars=True).keys()
    for name, buffer in module.named_buffers(remove_duplicate=False):
        if name in saved:
            yield name, buffer


def is_float(tensor: Tensor) -> bool:
    """Whether means of such tensors can be formed."""
    return tensor.is_floating_point() or tensor.is_complex()


def _once(named: Iterable[tuple[str, Tensor]]) -> Iterable[Named]:
    entries: dict[int, tuple[list[str], Tensor]] = {}
    for name, tensor in named:
        entries.setdefault(id(tensor), ([], tensor))[0].append(name)
    return entries.values()


def _matches(one: Named, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns for name in one[0])


def _require_known(
    field: str, patterns: Iterable[str], candidates: Sequence[Named], others: Sequence[Named]
) -> None:
    names = [name for one in candidates for name in one[0]]
    for pattern in patterns:
        if any(fnmatchcase(name, pattern) for name in names):
            continue
        problem = "matches no parameter or buffer of the model"
        if any(_matches(one, (pattern,)) for one in others):
            problem = "matches frozen parameters (requires_grad = False) or integers only"
        bare = pattern.translate(str.maketrans("", "", "*?[]"))
        near = difflib.get_close_matches(bare, names, NEAREST, cutoff=0)
        raise ConfigError(field, pattern, problem, f"the nearest names are {', '.join(near)}")


def _fingerprint(module: nn.Module, shared: Sequence[Named], frozen: Sequence[Named]) -> int:
    """64 bits over names, ties, shapes, dtypes and kinds of what is shared or frozen, and over the
    values of what is frozen. Integer buffers count where they would be shared if they were floats:
    they are local, but of the same layers."""
    compared = {id(tensor) for _, tensor in (*shared, *frozen)}
    first_names: dict[int, str] = {}
    rows = []
    for name, tensor in [*module.named_parameters(remove_duplicate=False), *saved_buffers(module)]:
        if id(tensor) not in compared:
            continue
        kind = "buffer"
        if isinstance(tensor, nn.Parameter):
            kind = "parameter" if tensor.requires_grad else "frozen"
        tied_to = first_names.setdefault(id(tensor), name)
        rows.append([name, tied_to, list(tensor.shape), str(tensor.dtype), kind])
    digest = hashlib.sha256(json.dumps(rows).encode()).digest()
    layout = int.from_bytes(digest[:8], "big")
    return layout & ~LOWER_HALF | _values(frozen) & LOWER_HALF if frozen else layout


def _values(tensors: Sequence[Named]) -> int:
    """64 bits over the values; not sha256, which takes 10 s for a base of some GB."""
    total = xxh3_64()
    for _, tensor in tensors:
        values = tensor.detach().cpu().contiguous().reshape(-1)
        total.update(values.view(torch.uint8).numpy().data)
    return total.intdigest()
