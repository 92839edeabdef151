"""GoogLeNet (Inception v1): Szegedy et al., "Going Deeper with Convolutions", CVPR 2015, table 1.

Without the two auxiliary classifiers, which are for training alone, and without local response normalization.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from edgekit.zoo.initialization import he_normal

# Table 1: 1×1, 3×3 reduce, 3×3, 5×5 reduce, 5×5, projection behind the pooling. Between the lists the map is halved.
STAGES = (
    ((64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64)),
    (
        (192, 96, 208, 16, 48, 64), (160, 112, 224, 24, 64, 64), (128, 128, 256, 24, 64, 64), (112, 144, 288, 32, 64, 64),
        (256, 160, 320, 32, 128, 128),
    ),
    ((256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128)),
)  # fmt: skip


def conv_relu(channels_in: int, channels: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """Convolution with bias, ReLU."""
    return nn.Sequential(nn.Conv2d(channels_in, channels, kernel, stride, kernel // 2), nn.ReLU())


class Inception(nn.Module):
    """Four branches over one input, side by side: figure 2(b)."""

    def __init__(self, channels_in: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        direct, reduce3, conv3, reduce5, conv5, projection = widths
        self.branch1 = conv_relu(channels_in, direct, 1)
        self.branch2 = nn.Sequential(conv_relu(channels_in, reduce3, 1), conv_relu(reduce3, conv3, 3))
        self.branch3 = nn.Sequential(conv_relu(channels_in, reduce5, 1), conv_relu(reduce5, conv5, 5))
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), conv_relu(channels_in, projection, 1))
        self.channels = direct + conv3 + conv5 + projection

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], 1)


class GoogLeNet(nn.Module):
    """A stem of three convolutions, nine inception modules, global average pooling, one linear layer.

    Args:
        width: Every number of channels is multiplied by it.
        classes: Outputs.
    """

    def __init__(self, width: float = 1.0, classes: int = 1000) -> None:
        super().__init__()
        first, channels = int(64 * width), int(192 * width)
        layers: list[nn.Module] = [
            conv_relu(3, first, 7, stride=2),
            nn.MaxPool2d(3, stride=2, ceil_mode=True),
            conv_relu(first, first, 1),
            conv_relu(first, channels, 3),
        ]
        for stage in STAGES:
            layers.append(nn.MaxPool2d(3, stride=2, ceil_mode=True))
            for widths in stage:
                module = Inception(channels, tuple(int(wanted * width) for wanted in widths))
                layers.append(module)
                channels = module.channels
        self.features = nn.Sequential(*layers)
        self.dropout = nn.Dropout(0.4)
        self.classifier = nn.Linear(channels, classes)
        he_normal(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.dropout(F.adaptive_avg_pool2d(self.features(x), 1).flatten(1)))
