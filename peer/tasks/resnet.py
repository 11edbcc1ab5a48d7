"""Residual networks (He et al. 2016): ResNet-18 and ResNet-50, and the narrow ResNet-20.

ResNet-20 is the paper's network for CIFAR-10: three stages of 16, 32 and 64 channels, and shortcuts
without parameters. Its last layer is a mean over pixels, so that it takes images of any size.
With EvoNorm, both layers of a block end in EvoNorm, which is an activation, too, and the block's
sum passes on as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

from torch import Tensor, nn
from torch.nn import functional as F

from peer.tasks.evonorm import EvoNormS0

Block: TypeAlias = Callable[[int, int, int], nn.Module]
"""A block from channels, to channels, with that stride."""


class ResNet(nn.Module):
    """Input (b, 3, height, width), output (b, classes)."""

    def __init__(self, stem: nn.Module, stages: nn.Module, width: int, classes: int) -> None:
        super().__init__()
        self.stem, self.stages = stem, stages
        self.classifier = nn.Linear(width, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        features = self.stages(self.stem(images))
        logits: Tensor = self.classifier(features.mean(dim=(2, 3)))
        return logits


class Basic(nn.Module):
    """Two 3x3 convolutions beside a shortcut."""

    def __init__(
        self, before: int, after: int, stride: int, *, projects: bool = True, evonorm: bool = False
    ) -> None:
        """`projects`: a shortcut that changes shape is a convolution; else it drops pixels, and
        adds channels of zeros."""
        super().__init__()
        self.residual = nn.Sequential(
            _conv(before, after, 3, stride),
            *_normalised(after, evonorm=evonorm),
            _conv(after, after, 3),
            EvoNormS0(after) if evonorm else nn.BatchNorm2d(after),
        )
        self.shortcut = _shortcut(before, after, stride, projects=projects)
        self.activation = nn.Identity() if evonorm else nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.activation(self.shortcut(x) + self.residual(x))
        return y


class Bottleneck(nn.Module):
    """A 3x3 convolution between two of 1x1, of which the last widens by four."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        inner = after // 4
        self.residual = nn.Sequential(
            _conv(before, inner, 1),
            *_normalised(inner),
            _conv(inner, inner, 3, stride),  # the stride is here, as in most implementations
            *_normalised(inner),
            _conv(inner, after, 1),
            nn.BatchNorm2d(after),
        )
        self.shortcut = _shortcut(before, after, stride, projects=True)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.shortcut(x) + self.residual(x))


class Padding(nn.Module):
    """A shortcut without parameters: every `stride`-th pixel, and channels of zeros behind."""

    def __init__(self, more: int, stride: int) -> None:
        super().__init__()
        self.more, self.stride = more, stride

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.more))


def resnet20(classes: int, *, evonorm: bool = False) -> ResNet:
    """0.27 million parameters with ten classes."""
    block = partial(Basic, projects=False, evonorm=evonorm)
    stem = nn.Sequential(_conv(3, 16, 3), *_normalised(16, evonorm=evonorm))
    return ResNet(stem, _stages(block, 16, (16, 32, 64), (3, 3, 3)), 64, classes)


def resnet18(classes: int) -> ResNet:
    """11.7 million parameters with 1000 classes."""
    return ResNet(_wide_stem(), _stages(Basic, 64, (64, 128, 256, 512), (2, 2, 2, 2)), 512, classes)


def resnet50(classes: int) -> ResNet:
    """25.6 million parameters with 1000 classes."""
    stages = _stages(Bottleneck, 64, (256, 512, 1024, 2048), (3, 4, 6, 3))
    return ResNet(_wide_stem(), stages, 2048, classes)


def _wide_stem() -> nn.Module:
    """For images of some 224 pixels: a quarter of height and width is left."""
    return nn.Sequential(
        nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False),
        *_normalised(64),
        nn.MaxPool2d(3, stride=2, padding=1),
    )


def _stages(
    block: Block, before: int, widths: tuple[int, ...], depths: tuple[int, ...]
) -> nn.Module:
    blocks = []
    for stage, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        for index in range(depth):
            blocks.append(block(before, width, 2 if stage and not index else 1))
            before = width
    return nn.Sequential(*blocks)


def _shortcut(before: int, after: int, stride: int, *, projects: bool) -> nn.Module:
    if before == after and stride == 1:
        return nn.Identity()
    if not projects:
        return Padding(after - before, stride)
    return nn.Sequential(_conv(before, after, 1, stride), nn.BatchNorm2d(after))


def _conv(before: int, after: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(before, after, size, stride, padding=size // 2, bias=False)


def _normalised(channels: int, *, evonorm: bool = False) -> list[nn.Module]:
    """Normalisation and activation."""
    return [EvoNormS0(channels)] if evonorm else [nn.BatchNorm2d(channels), nn.ReLU()]
