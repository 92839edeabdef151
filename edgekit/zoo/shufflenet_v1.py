"""ShuffleNet V1: Zhang et al., "ShuffleNet: An Extremely Efficient CNN for Mobile Devices", CVPR 2018, table 1."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from edgekit.zoo.initialization import he_normal

# Output channels of stage 2 by the number of groups; each later stage has twice as many.
WIDTHS = {1: 144, 2: 200, 3: 240, 4: 272, 8: 384}
STEM = 24
UNITS = (4, 8, 4)


def shuffle(x: torch.Tensor, groups: int) -> torch.Tensor:
    """Deals the channels of each group out to all groups."""
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)


class Unit(nn.Module):
    """Grouped 1×1, shuffle, depthwise 3×3, grouped 1×1: figure 2(b), and 2(c) where it halves the map."""

    def __init__(self, channels_in: int, channels: int, groups: int, stride: int, *, first: bool) -> None:
        super().__init__()
        self.stride, self.groups = stride, groups
        inner = channels // 4
        # The shortcut's channels are a part of the output where it is pooled.
        made = channels - channels_in if stride == 2 else channels
        # "We do not apply group convolution on the first pointwise layer because the number of input channels is small."
        self.reduce = nn.Conv2d(channels_in, inner, 1, groups=1 if first else groups, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.depthwise = nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.expand = nn.Conv2d(inner, made, 1, groups=groups, bias=False)
        self.bn3 = nn.BatchNorm2d(made)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.bn1(self.reduce(x)))
        if self.groups > 1:
            y = shuffle(y, self.groups)
        y = self.bn3(self.expand(self.bn2(self.depthwise(y))))
        if self.stride == 2:
            return F.relu(torch.cat([F.avg_pool2d(x, 3, 2, 1), y], 1))
        return F.relu(x + y)


class ShuffleNetV1(nn.Module):
    """A 3×3 stem, a max pooling, three stages of units, global average pooling, one linear layer.

    Args:
        groups: 1, 2, 3, 4 or 8; more groups have more channels at about the same cost.
        units: Of each stage.
        classes: Outputs.
    """

    def __init__(self, groups: int, *, units: tuple[int, int, int] = UNITS, classes: int = 1000) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, STEM, 3, 2, 1, bias=False)
        self.bn = nn.BatchNorm2d(STEM)
        layers = []
        channels, wanted = STEM, WIDTHS[groups]
        for stage, count in enumerate(units):
            for position in range(count):
                first = stage == position == 0
                layers.append(Unit(channels, wanted, groups, 1 if position else 2, first=first))
                channels = wanted
            wanted *= 2
        self.stages = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, classes)
        he_normal(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.relu(self.bn(self.stem(x))), 3, 2, 1)
        return self.classifier(F.adaptive_avg_pool2d(self.stages(x), 1).flatten(1))
