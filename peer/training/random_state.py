"""Random state owned by a peer and swapped in around its training.

Peers that share a process (the simulator, tests) must not draw from each other's generators: each
owns a state of torch's, numpy's and python's global generators, and `with state:` puts it in
place and takes it back. Global generators belong to the process, so only one thread may train.
"""

from __future__ import annotations

import hashlib
import random
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

_KEY_WORDS = 624  # state words of the Mersenne Twister, which numpy and python both use


def derive_seed(*parts: object) -> int:
    """A seed in [0, 2**63) for the purpose that `parts` name: unrelated for unequal parts."""
    digest = hashlib.sha256("\x1f".join(map(repr, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


class _Snapshot(NamedTuple):
    torch_cpu: Tensor
    torch_cuda: Tensor | None
    numpy: dict[str, Any]
    python: tuple[Any, ...]


class RandomState:
    """The state of torch's (CPU and, for a CUDA device, that device's), numpy's and python's
    global generators, started from `seed`."""

    def __init__(self, seed: int, device: torch.device | str = "cpu") -> None:
        self._device = torch.device(device)
        self._outer: _Snapshot | None = None
        cuda = None
        if self._device.type == "cuda":
            cuda = torch.Generator(self._device).manual_seed(seed).get_state()
        self._own = _Snapshot(
            torch.Generator().manual_seed(seed).get_state(),
            cuda,
            dict(np.random.RandomState(seed % 2**32).get_state(legacy=False)),
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
        _, key_and_pos, gauss_next = self._own.python
        mt = self._own.numpy["state"]
        tensors = {
            "torch": self._own.torch_cpu.clone(),
            "numpy": torch.tensor(mt["key"].astype(np.int64)),
            "python": torch.tensor(key_and_pos, dtype=torch.int64),
        }
        if self._own.torch_cuda is not None:
            tensors["cuda"] = self._own.torch_cuda.clone()
        values = {
            "numpy_pos": int(mt["pos"]),
            "numpy_has_gauss": int(self._own.numpy["has_gauss"]),
            "numpy_gauss": float(self._own.numpy["gauss"]),
            "python_gauss": gauss_next,
        }
        return tensors, values

    def load_state(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Take over what `state` returned. A CUDA state is ignored on another device."""
        key = tensors["numpy"].numpy().astype(np.uint32)
        python = tuple(tensors["python"].tolist())
        assert len(key) == _KEY_WORDS
        cuda = self._own.torch_cuda
        if cuda is not None:
            cuda = tensors.get("cuda", cuda).clone()
        self._own = _Snapshot(
            tensors["torch"].clone(),
            cuda,
            {
                "bit_generator": "MT19937",
                "state": {"key": key, "pos": values["numpy_pos"]},
                "has_gauss": values["numpy_has_gauss"],
                "gauss": values["numpy_gauss"],
            },
            (random.Random.VERSION, python, values["python_gauss"]),
        )

    def _read(self) -> _Snapshot:
        cuda = None
        if self._device.type == "cuda":
            cuda = torch.cuda.get_rng_state(self._device)
        numpy = dict(np.random.get_state(legacy=False))
        return _Snapshot(torch.get_rng_state(), cuda, numpy, random.getstate())

    def _write(self, snapshot: _Snapshot) -> None:
        torch.set_rng_state(snapshot.torch_cpu)
        if snapshot.torch_cuda is not None:
            torch.cuda.set_rng_state(snapshot.torch_cuda, self._device)
        np.random.set_state(snapshot.numpy)
        random.setstate(snapshot.python)
