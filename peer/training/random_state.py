"""Random state owned by a peer and swapped in around its training.

Peers that share a process (the simulator, tests) must not draw from each other's generators: each
owns a state of torch's, numpy's and python's global generators, and `with state:` puts it in
place and takes it back. Global generators belong to the process, so only one thread may train.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.random.mtrand import get_bit_generator, set_bit_generator
from torch import Tensor


def derive_seed(*parts: object) -> int:
    """A seed in [0, 2**63) for the purpose that `parts` name: unrelated for unequal parts."""
    digest = hashlib.sha256("\x1f".join(map(repr, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


class _Snapshot(NamedTuple):
    torch_cpu: Tensor
    torch_cuda: Tensor | None
    numpy: Any  # the bit generator itself: reading its state out takes longer than a small step
    python: tuple[Any, ...]


class RandomState:
    """The state of torch's (CPU and, for a CUDA device, that device's), numpy's and python's
    global generators, started from `seed`.

    numpy's draws normals in pairs; the second of a pair does not outlive a swap.
    """

    def __init__(self, seed: int, device: torch.device | str = "cpu") -> None:
        self._device = torch.device(device)
        self._outer: _Snapshot | None = None
        cuda = None
        if self._device.type == "cuda":
            cuda = torch.Generator(self._device).manual_seed(seed).get_state()
        self._own = _Snapshot(
            torch.Generator().manual_seed(seed).get_state(),
            cuda,
            np.random.MT19937(seed),
            random.Random(seed).getstate(),
        )

    def __enter__(self) -> RandomState:
        assert self._outer is None, "a random state is entered once at a time"
        self._outer = self._read()
        self._write(self._own)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._outer is not None
        self._own = self._read()
        self._write(self._outer)
        self._outer = None

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """As tensors by name and JSON values, for a checkpoint."""
        _, words, gauss_next = self._own.python
        twister = self._own.numpy.state["state"]
        tensors = {
            "torch": self._own.torch_cpu.clone(),
            "numpy": torch.tensor(twister["key"].astype(np.int64)),
            "python": torch.tensor(words, dtype=torch.int64),
        }
        if self._own.torch_cuda is not None:
            tensors["cuda"] = self._own.torch_cuda.clone()
        return tensors, {"numpy_pos": int(twister["pos"]), "python_gauss": gauss_next}

    def load_state(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Take over what `state` returned. A CUDA state is ignored on another device."""
        cuda = self._own.torch_cuda
        if cuda is not None:
            cuda = tensors.get("cuda", cuda).clone()
        twister = np.random.MT19937()
        key = tensors["numpy"].numpy().astype(np.uint32)
        twister.state = {
            "bit_generator": "MT19937",
            "state": {"key": key, "pos": values["numpy_pos"]},
        }
        words = tuple(tensors["python"].tolist())
        python = (random.Random.VERSION, words, values["python_gauss"])
        self._own = _Snapshot(tensors["torch"].clone(), cuda, twister, python)

    def _read(self) -> _Snapshot:
        cuda = None
        if self._device.type == "cuda":
            cuda = torch.cuda.get_rng_state(self._device)
        numpy = get_bit_generator()
        return _Snapshot(torch.get_rng_state(), cuda, numpy, random.getstate())

    def _write(self, snapshot: _Snapshot) -> None:
        torch.set_rng_state(snapshot.torch_cpu)
        if snapshot.torch_cuda is not None:
            torch.cuda.set_rng_state(snapshot.torch_cuda, self._device)
        set_bit_generator(snapshot.numpy)
        random.setstate(snapshot.python)
