"""Xception: Chollet, "Xception: Deep Learning with Depthwise Separable Convolutions", CVPR 2017, figure 5."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from edgekit.zoo.initialization import he_normal

# Output channels of the two separable convolutions of each block that halves the map, in the entry and the exit flow.
ENTRY = ((128, 128), (256, 256), (728, 728))
MIDDLE_BLOCKS = 8
EXIT = (728, 1024)
LAST = (1536, 2048)


def separable(channels_in: int, channels: int) -> list[nn.Module]:
    """Depthwise 3×3, pointwise 1×1, with nothing between them, batch norm."""
    return [
        nn.Conv2d(channels_in, channels_in, 3, padding=1, groups=channels_in, bias=False),
        nn.Conv2d(channels_in, channels, 1, bias=False),
        nn.BatchNorm2d(channels),
    ]


class Block(nn.Module):
    """ReLU and separable convolution in turn, beside a shortcut: the input, or its 1×1 projection where the map is halved."""

    def __init__(self, channels_in: int, widths: tuple[int, ...], *, pool: bool, relu_first: bool = True) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = channels_in
        for wanted in widths:
            layers += [nn.ReLU(), *separable(channels, wanted)]
            channels = wanted
        self.body = nn.Sequential(*layers[0 if relu_first else 1 :])
        self.shortcut = nn.Sequential()
        if pool:
            self.body.append(nn.MaxPool2d(3, 2, 1))
            self.shortcut = nn.Sequential(nn.Conv2d(channels_in, channels, 1, 2, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x) + self.shortcut(x)


class Xception(nn.Module):
    """Entry, middle and exit flow, global average pooling, one linear layer; made for 299×299.

    Args:
        width: Every number of channels is multiplied by it.
        middle: Blocks of the middle flow.
        classes: Outputs.
    """

    def __init__(self, width: float = 1.0, middle: int = MIDDLE_BLOCKS, classes: int = 1000) -> None:
        super().__init__()

        def scaled(widths: tuple[int, ...]) -> tuple[int, ...]:
            return tuple(int(wanted * width) for wanted in widths)

        first, second = scaled((32, 64))
        layers: list[nn.Module] = [
            nn.Conv2d(3, first, 3, 2, bias=False), nn.BatchNorm2d(first), nn.ReLU(),
            nn.Conv2d(first, second, 3, bias=False), nn.BatchNorm2d(second), nn.ReLU(),
        ]  # fmt: skip
        channels = second
        for number, widths in enumerate(ENTRY):
            # The stem ends in a ReLU of its own.
            layers.append(Block(channels, scaled(widths), pool=True, relu_first=number > 0))
            channels = scaled(widths)[-1]
        layers += [Block(channels, (channels,) * 3, pool=False) for _ in range(middle)]
        layers.append(Block(channels, scaled(EXIT), pool=True))
        channels = scaled(EXIT)[-1]
        for wanted in scaled(LAST):
            layers += [*separable(channels, wanted), nn.ReLU()]
            channels = wanted
        self.features = nn.Sequential(*layers)
        self.dropout = nn.Dropout(0.5)
        self.classifier = nn.Linear(channels, classes)
        he_normal(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.dropout(F.adaptive_avg_pool2d(self.features(x), 1).flatten(1)))
