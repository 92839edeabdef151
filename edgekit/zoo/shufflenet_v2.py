"""ShuffleNet V2: Ma et al., "ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design", ECCV 2018, table 5.

Layers are named as in torchvision, whose weights load.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from edgekit.zoo.initialization import he_normal
from edgekit.zoo.shufflenet_v1 import shuffle

# Output channels of stages 2 to 4 and of the last convolution, by the width of the network.
WIDTHS = {
    0.5: (48, 96, 192, 1024), 1.0: (116, 232, 464, 1024), 1.5: (176, 352, 704, 1024), 2.0: (244, 488, 976, 2048),
}  # fmt: skip
STEM = 24
UNITS = (4, 8, 4)


def conv_bn_relu(channels_in: int, channels: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    """Convolution without bias, batch norm, ReLU."""
    convolution = nn.Conv2d(channels_in, channels, kernel, stride, kernel // 2, bias=False)
    return [convolution, nn.BatchNorm2d(channels), nn.ReLU()]


def depthwise_bn(channels: int, stride: int) -> list[nn.Module]:
    """Depthwise 3×3 convolution without bias, batch norm."""
    return [nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False), nn.BatchNorm2d(channels)]


class Unit(nn.Module):
    """Half of the channels passes, half is worked on, both are shuffled: figure 3(c); 3(d) where the map is halved."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        half = channels // 2
        self.branch1 = nn.Sequential()
        if stride == 2:
            self.branch1 = nn.Sequential(*depthwise_bn(channels_in, stride), *conv_bn_relu(channels_in, half, 1))
        before = channels_in if stride == 2 else half
        self.branch2 = nn.Sequential(
            *conv_bn_relu(before, half, 1), *depthwise_bn(half, stride), *conv_bn_relu(half, half, 1)
        )
        self.splits = stride == 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left, right = x.chunk(2, 1) if self.splits else (self.branch1(x), x)
        return shuffle(torch.cat([left, self.branch2(right)], 1), 2)


class ShuffleNetV2(nn.Module):
    """A 3×3 stem, a max pooling, three stages of units, a 1×1 convolution, global average pooling, one linear layer.

    Args:
        width: 0.5, 1.0, 1.5 or 2.0.
        units: Of each stage.
        classes: Outputs.
    """

    def __init__(self, width: float, *, units: tuple[int, int, int] = UNITS, classes: int = 1000) -> None:
        super().__init__()
        *widths, last = WIDTHS[width]
        self.conv1 = nn.Sequential(*conv_bn_relu(3, STEM, 3, stride=2))
        channels, stages = STEM, []
        for wanted, count in zip(widths, units, strict=True):
            stages.append(
                nn.Sequential(Unit(channels, wanted, 2), *(Unit(wanted, wanted, 1) for _ in range(count - 1)))
            )
            channels = wanted
        self.stage2, self.stage3, self.stage4 = stages
        self.conv5 = nn.Sequential(*conv_bn_relu(channels, last, 1))
        self.fc = nn.Linear(last, classes)
        he_normal(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(self.conv1(x), 3, 2, 1)
        x = self.conv5(self.stage4(self.stage3(self.stage2(x))))
        return self.fc(x.mean((2, 3)))
