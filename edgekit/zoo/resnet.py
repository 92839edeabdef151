"""ResNets for ImageNet: He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, table 1.

ResNet-50 halves the map in the 3×3 convolution of a block and not in its first 1×1 (known as v1.5: 4.09 instead of 3.86
billion MACs, and more accurate). Layers are named as in torchvision, whose weights load.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from edgekit.zoo.initialization import he_normal

# Kind of block and blocks of each stage, by the number of layers with weights.
PLANS = {18: ("basic", (2, 2, 2, 2)), 50: ("bottleneck", (3, 4, 6, 3))}
WIDTHS = (64, 128, 256, 512)


def shortcut(channels_in: int, channels: int, stride: int) -> nn.Sequential | None:
    """A 1×1 projection where the shape changes (option B), nothing elsewhere."""
    if stride == 1 and channels_in == channels:
        return None
    return nn.Sequential(nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))


class Basic(nn.Module):
    """Two 3×3 convolutions."""

    expansion = 1

    def __init__(self, channels_in: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = shortcut(channels_in, width, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """1×1 down to ``width`` channels, 3×3, 1×1 up to four times as many."""

    expansion = 4

    def __init__(self, channels_in: int, width: int, stride: int) -> None:
        super().__init__()
        channels = width * self.expansion
        self.conv1 = nn.Conv2d(channels_in, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels)
        self.downsample = shortcut(channels_in, channels, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """A 7×7 stem, a max pooling, four stages of residual blocks, global average pooling, one linear layer.

    Args:
        depth: 18 or 50 layers with weights.
        blocks: Blocks of each stage, where not those of the paper.
        width: Every number of channels is multiplied by it.
        classes: Outputs.
    """

    def __init__(
        self, depth: int, *, blocks: Sequence[int] | None = None, width: float = 1.0, classes: int = 1000
    ) -> None:
        super().__init__()
        kind, of_paper = PLANS[depth]
        block = Bottleneck if kind == "bottleneck" else Basic
        channels = int(WIDTHS[0] * width)
        self.conv1 = nn.Conv2d(3, channels, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        stages = []
        for number, (wanted, count) in enumerate(zip(WIDTHS, blocks or of_paper, strict=True)):
            made: list[nn.Module] = []
            for position in range(count):
                stride = 2 if number and not position else 1
                made.append(block(channels, int(wanted * width), stride))
                channels = int(wanted * width) * block.expansion
            stages.append(nn.Sequential(*made))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.fc = nn.Linear(channels, classes)
        he_normal(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))
