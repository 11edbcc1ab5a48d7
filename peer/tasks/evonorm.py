"""EvoNorm-S0 (Liu et al. 2020): normalisation and activation in one, of each sample by itself.

It takes the place of BatchNorm and ReLU. It keeps no statistics of the data, which would differ
from peer to peer as their data do.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

_EPSILON = 1e-5


class EvoNormS0(nn.Module):
    """y = x sigmoid(v x) / s * gamma + beta; s is the deviation over a group of channels and all
    pixels, and v, gamma and beta have a value for each channel. Shape (b, channels, h, w)."""

    def __init__(self, channels: int, groups: int = 32) -> None:
        """`groups` is the paper's; layers of fewer channels have as many groups as channels."""
        super().__init__()
        self.groups = min(groups, channels)
        shape = (1, channels, 1, 1)
        self.v = nn.Parameter(torch.ones(shape))
        self.gamma = nn.Parameter(torch.ones(shape))
        self.beta = nn.Parameter(torch.zeros(shape))

    def forward(self, x: Tensor) -> Tensor:
        grouped = x.reshape(x.shape[0], self.groups, -1)
        variance = grouped.var(dim=2, unbiased=False, keepdim=True)
        activated = (x * torch.sigmoid(self.v * x)).reshape(grouped.shape)
        scaled = (activated / (variance + _EPSILON).sqrt()).reshape(x.shape)
        return scaled * self.gamma + self.beta
