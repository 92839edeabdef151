"""SqueezeNet: Iandola et al., arXiv:1602.07360, table 1; version 1.1 as in the authors' repository (2.4× fewer MACs)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from edgekit.zoo.initialization import he_normal


class Fire(nn.Module):
    """A 1×1 squeeze, then 1×1 and 3×3 expansions side by side."""

    def __init__(self, channels_in: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels_in, squeeze, 1)
        self.expand1x1 = nn.Conv2d(squeeze, expand, 1)
        self.expand3x3 = nn.Conv2d(squeeze, expand, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.squeeze(x))
        return torch.cat([F.relu(self.expand1x1(x)), F.relu(self.expand3x3(x))], 1)


class SqueezeNet(nn.Module):
    """Eight fire modules; the classifier is a 1×1 convolution and a global average.

    Args:
        version: ``1.0`` of the paper (7×7 stem, late poolings) or ``1.1`` (3×3 stem, early ones).
        classes: Outputs.
    """

    def __init__(self, classes: int = 1000, *, version: str = "1.1") -> None:
        super().__init__()
        pool = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        if version == "1.0":
            self.features = nn.Sequential(
                nn.Conv2d(3, 96, 7, stride=2), nn.ReLU(), pool,
                Fire(96, 16, 64), Fire(128, 16, 64), Fire(128, 32, 128), pool,
                Fire(256, 32, 128), Fire(256, 48, 192), Fire(384, 48, 192), Fire(384, 64, 256), pool,
                Fire(512, 64, 256),
            )  # fmt: skip
        else:
            self.features = nn.Sequential(
                nn.Conv2d(3, 64, 3, stride=2), nn.ReLU(), pool,
                Fire(64, 16, 64), Fire(128, 16, 64), pool,
                Fire(128, 32, 128), Fire(256, 32, 128), pool,
                Fire(256, 48, 192), Fire(384, 48, 192), Fire(384, 64, 256), Fire(512, 64, 256),
            )  # fmt: skip
        self.dropout = nn.Dropout(0.5)
        self.classifier = nn.Conv2d(512, classes, 1)
        he_normal(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.classifier(self.dropout(self.features(x))))
        return F.adaptive_avg_pool2d(x, 1).flatten(1)
