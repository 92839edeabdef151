"""MobileNet V1: Howard et al., arXiv:1704.04861, table 1."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from edgekit.zoo.initialization import he_normal

# Output channels and stride of each depthwise-separable block.
BLOCKS = (
    (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1), (512, 1), (512, 1), (512, 1), (512, 1),
    (1024, 2), (1024, 1),
)  # fmt: skip


def conv_bn(channels_in: int, channels: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution without bias, batch norm, ReLU."""
    return nn.Sequential(
        nn.Conv2d(channels_in, channels, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
    )


class MobileNetV1(nn.Module):
    """Depthwise 3×3 and pointwise 1×1 convolutions in turn."""

    def __init__(self, width: float = 1.0, classes: int = 1000) -> None:
        super().__init__()
        channels = int(32 * width)
        layers = [conv_bn(3, channels, 3, stride=2)]
        for wanted, stride in BLOCKS:
            layers.append(conv_bn(channels, channels, 3, stride, groups=channels))
            layers.append(conv_bn(channels, int(wanted * width), 1))
            channels = int(wanted * width)
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, classes)
        he_normal(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(F.adaptive_avg_pool2d(self.features(x), 1).flatten(1))
