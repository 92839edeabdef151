"""GhostNet: Han et al., "GhostNet: More Features from Cheap Operations", CVPR 2020, table 1."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from edgekit.zoo.initialization import he_normal
from edgekit.zoo.mobilenet_v3 import divisible

# Kernel of the depthwise convolutions, expanded channels, output channels, squeeze-and-excite, stride.
BLOCKS = (
    (3, 16, 16, False, 1), (3, 48, 24, False, 2), (3, 72, 24, False, 1), (5, 72, 40, True, 2), (5, 120, 40, True, 1),
    (3, 240, 80, False, 2), (3, 200, 80, False, 1), (3, 184, 80, False, 1), (3, 184, 80, False, 1),
    (3, 480, 112, True, 1), (3, 672, 112, True, 1), (5, 672, 160, True, 2), (5, 960, 160, False, 1),
    (5, 960, 160, True, 1), (5, 960, 160, False, 1), (5, 960, 160, True, 1),
)  # fmt: skip
STEM, LAST, HIDDEN = 16, 960, 1280


def conv_bn(
    channels_in: int, channels: int, kernel: int, *, stride: int = 1, depthwise: bool = False
) -> list[nn.Module]:
    """Convolution without bias, batch norm."""
    groups = channels if depthwise else 1
    convolution = nn.Conv2d(channels_in, channels, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(channels)]


class Ghost(nn.Module):
    """Half of the channels by a 1×1 convolution, the other half from these by a depthwise 3×3: figure 1(b)."""

    def __init__(self, channels_in: int, channels: int, *, relu: bool) -> None:
        super().__init__()
        half = channels // 2
        last: list[nn.Module] = [nn.ReLU()] if relu else []
        self.primary = nn.Sequential(*conv_bn(channels_in, half, 1), *last)
        self.cheap = nn.Sequential(*conv_bn(half, half, 3, depthwise=True), *last)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        primary = self.primary(x)
        return torch.cat([primary, self.cheap(primary)], 1)


class SqueezeExcite(nn.Module):
    """Weights each channel by what two 1×1 convolutions make of the means of all."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = divisible(channels / 4, 4)
        self.reduce = nn.Conv2d(channels, squeezed, 1)
        self.expand = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * F.hardsigmoid(self.expand(F.relu(self.reduce(F.adaptive_avg_pool2d(x, 1)))))


class Bottleneck(nn.Module):
    """A ghost module that expands, one that reduces, between them a strided depthwise convolution: figure 3."""

    def __init__(self, channels_in: int, kernel: int, expanded: int, channels: int, excite: bool, stride: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [Ghost(channels_in, expanded, relu=True)]
        if stride == 2:
            layers += conv_bn(expanded, expanded, kernel, stride=2, depthwise=True)
        if excite:
            layers.append(SqueezeExcite(expanded))
        layers.append(Ghost(expanded, channels, relu=False))
        self.body = nn.Sequential(*layers)
        self.shortcut = nn.Sequential()
        if stride == 2 or channels_in != channels:
            self.shortcut = nn.Sequential(
                *conv_bn(channels_in, channels_in, kernel, stride=stride, depthwise=True),
                *conv_bn(channels_in, channels, 1),
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x) + self.shortcut(x)


class GhostNet(nn.Module):
    """A 3×3 stem, ghost bottlenecks (sixteen in the paper), and a head whose 1280 features are made behind the pooling.

    Args:
        width: Every number of channels but the last is multiplied by it, and rounded to a multiple of 4.
        classes: Outputs.
        blocks: Of the paper's form, in order.
    """

    def __init__(
        self, width: float = 1.0, classes: int = 1000, *, blocks: tuple[tuple[int, int, int, bool, int], ...] = BLOCKS
    ) -> None:
        super().__init__()
        channels = divisible(STEM * width, 4)
        layers: list[nn.Module] = [*conv_bn(3, channels, 3, stride=2), nn.ReLU()]
        for kernel, expanded, wanted, excite, stride in blocks:
            inner, after = divisible(expanded * width, 4), divisible(wanted * width, 4)
            layers.append(Bottleneck(channels, kernel, inner, after, excite, stride))
            channels = after
        last = divisible(LAST * width, 4)
        self.features = nn.Sequential(*layers, *conv_bn(channels, last, 1), nn.ReLU())
        self.head = nn.Conv2d(last, HIDDEN, 1)
        self.dropout = nn.Dropout(0.2)
        self.classifier = nn.Linear(HIDDEN, classes)
        he_normal(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.head(F.adaptive_avg_pool2d(self.features(x), 1)))
        return self.classifier(self.dropout(x.flatten(1)))
