"""MobileNet V3: Howard et al., "Searching for MobileNetV3", ICCV 2019, tables 1 and 2.

Layers are named as in torchvision, whose weights load.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from edgekit.zoo.initialization import he_normal

# Kernel, expanded channels, output channels, squeeze-and-excite, non-linearity (ReLU or hard swish), stride.
BLOCKS = {
    "large": (
        (3, 16, 16, False, "RE", 1), (3, 64, 24, False, "RE", 2), (3, 72, 24, False, "RE", 1), (5, 72, 40, True, "RE", 2),
        (5, 120, 40, True, "RE", 1), (5, 120, 40, True, "RE", 1), (3, 240, 80, False, "HS", 2),
        (3, 200, 80, False, "HS", 1), (3, 184, 80, False, "HS", 1), (3, 184, 80, False, "HS", 1),
        (3, 480, 112, True, "HS", 1), (3, 672, 112, True, "HS", 1), (5, 672, 160, True, "HS", 2),
        (5, 960, 160, True, "HS", 1), (5, 960, 160, True, "HS", 1),
    ),
    "small": (
        (3, 16, 16, True, "RE", 2), (3, 72, 24, False, "RE", 2), (3, 88, 24, False, "RE", 1), (5, 96, 40, True, "HS", 2),
        (5, 240, 40, True, "HS", 1), (5, 240, 40, True, "HS", 1), (5, 120, 48, True, "HS", 1), (5, 144, 48, True, "HS", 1),
        (5, 288, 96, True, "HS", 2), (5, 576, 96, True, "HS", 1), (5, 576, 96, True, "HS", 1),
    ),
}  # fmt: skip
STEM = 16
# Width of the linear layer before the last.
HIDDEN = {"large": 1280, "small": 1024}
# As in the authors' TensorFlow code.
EPSILON, MOMENTUM = 1e-3, 0.01


def divisible(channels: float, by: int = 8) -> int:
    """The nearest multiple, and the next one where that is more than 10 % below."""
    nearest = max(by, int(channels + by / 2) // by * by)
    return nearest + by if nearest < 0.9 * channels else nearest


def conv_bn(
    channels_in: int, channels: int, kernel: int, *, stride: int = 1, groups: int = 1, activation: str = ""
) -> nn.Sequential:
    """Convolution without bias, batch norm, and a non-linearity unless it is linear."""
    layers: list[nn.Module] = [
        nn.Conv2d(channels_in, channels, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(channels, EPSILON, MOMENTUM),
    ]
    if activation:
        layers.append(nn.Hardswish() if activation == "HS" else nn.ReLU())
    return nn.Sequential(*layers)


class SqueezeExcite(nn.Module):
    """Weights each channel by what two 1×1 convolutions make of the means of all."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = divisible(channels / 4)
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * F.hardsigmoid(self.fc2(F.relu(self.fc1(F.adaptive_avg_pool2d(x, 1)))))


class Bneck(nn.Module):
    """Expand, filter by a depthwise convolution, weight the channels, project: figure 4."""

    def __init__(
        self, channels_in: int, kernel: int, expanded: int, channels: int, excite: bool, activation: str, stride: int
    ) -> None:
        super().__init__()
        layers = [conv_bn(channels_in, expanded, 1, activation=activation)] if expanded != channels_in else []
        layers.append(conv_bn(expanded, expanded, kernel, stride=stride, groups=expanded, activation=activation))
        self.block = nn.Sequential(
            *layers, *([SqueezeExcite(expanded)] if excite else []), conv_bn(expanded, channels, 1)
        )
        self.residual = stride == 1 and channels_in == channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.block(x) if self.residual else self.block(x)


class MobileNetV3(nn.Module):
    """Bottlenecks between a 3×3 stem and a head whose last convolution stands in front of, its linear ones behind the pooling.

    Args:
        size: ``large`` or ``small``.
        width: Every number of channels is multiplied by it, and rounded to a multiple of 8.
        classes: Outputs.
    """

    def __init__(self, size: str, *, width: float = 1.0, classes: int = 1000) -> None:
        super().__init__()
        channels = divisible(STEM * width)
        layers: list[nn.Module] = [conv_bn(3, channels, 3, stride=2, activation="HS")]
        for kernel, expanded, wanted, excite, activation, stride in BLOCKS[size]:
            inner, after = divisible(expanded * width), divisible(wanted * width)
            layers.append(Bneck(channels, kernel, inner, after, excite, activation, stride))
            channels = after
        layers.append(conv_bn(channels, 6 * channels, 1, activation="HS"))
        self.features = nn.Sequential(*layers)
        hidden = divisible(HIDDEN[size] * width)
        self.classifier = nn.Sequential(
            nn.Linear(6 * channels, hidden), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(hidden, classes)
        )
        he_normal(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(F.adaptive_avg_pool2d(self.features(x), 1).flatten(1))
