"""Mixed precision: the loss is computed in less than what parameters are kept in.

Parameters, the vector that travels, and the optimizer's state stay as they are. With float16 small
gradients would vanish, so the loss is scaled before it is differentiated and gradients are scaled
back (Micikevicius et al., 2018); a step in which one of them overflows is skipped, and moves
nothing. How large the scale is follows from the steps before, so it is part of a checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class MixedPrecision:
    """Of one peer, in a type of `DTYPES`."""

    def __init__(self, name: str, device: torch.device) -> None:
        self._dtype, self._device = DTYPES[name], device
        self.scaler = torch.amp.GradScaler(device.type, enabled=name == "float16")

    def computing(self) -> AbstractContextManager[object]:
        """The forward pass."""
        return torch.autocast(self._device.type, self._dtype)

    def backward(self, loss: Tensor) -> None:
        """Leave gradients in the parameters, times the scale."""
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

    def step(self, optimizer: torch.optim.Optimizer, bare: Callable[[], object]) -> None:
        """Take the optimizer's step, or skip it, and judge the scale."""
        if not self.scaler.is_enabled():
            bare()
            return
        self.scaler.step(optimizer)
        self.scaler.update()

    def state(self) -> dict[str, Any]:
        """JSON values; empty without a scale."""
        found: dict[str, Any] = self.scaler.state_dict()
        return found

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from there. Raises LookupError or TypeError if that is no such state."""
        if self.scaler.is_enabled():
            own = self.scaler.state_dict()
            self.scaler.load_state_dict({key: type(own[key])(state[key]) for key in own})
