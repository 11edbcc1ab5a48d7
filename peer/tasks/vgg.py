"""VGG-11 for images of 32 by 32 pixels, without normalisation (Simonyan & Zisserman 2015, A).

Its eight convolutions and five poolings leave one pixel of 512 channels, on which a single linear
layer decides, in place of the three of the ImageNet network. Weights start as in He et al. 2015,
without which so deep a network without normalisation does not begin to learn.
"""

from __future__ import annotations

from torch import Tensor, nn

_PLAN = (64, "pool", 128, "pool", 256, 256, "pool", 512, 512, "pool", 512, 512, "pool")


class Vgg11(nn.Module):
    """Input (b, 3, 32, 32), output (b, classes); 9,225,610 parameters with ten classes."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for entry in _PLAN:
            if isinstance(entry, str):
                layers.append(nn.MaxPool2d(2))
                continue
            layers += [nn.Conv2d(channels, entry, 3, padding=1), nn.ReLU()]
            channels = entry
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                assert module.bias is not None
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.features(images).flatten(1))
        return logits
