"""MobileNet V2: Sandler et al., "Inverted Residuals and Linear Bottlenecks", CVPR 2018, table 2."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from edgekit.zoo.initialization import he_normal

# Expansion, output channels, repeats, stride of the first.
STAGES = (
    (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
)  # fmt: skip
LAST = 1280


def conv_bn(channels_in: int, channels: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """Convolution without bias, batch norm, ReLU6."""
    convolution = nn.Conv2d(channels_in, channels, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(channels), nn.ReLU6()]


class InvertedResidual(nn.Module):
    """Expand by a 1×1, filter by a depthwise 3×3, project by a linear 1×1."""

    def __init__(self, channels_in: int, channels: int, expansion: int, stride: int) -> None:
        super().__init__()
        hidden = channels_in * expansion
        layers: list[nn.Module] = conv_bn(channels_in, hidden, 1) if expansion > 1 else []
        layers += conv_bn(hidden, hidden, 3, stride, groups=hidden)
        layers += [nn.Conv2d(hidden, channels, 1, bias=False), nn.BatchNorm2d(channels)]
        self.body = nn.Sequential(*layers)
        self.residual = stride == 1 and channels_in == channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x) if self.residual else self.body(x)


class MobileNetV2(nn.Module):
    """Seven stages of inverted residuals between a 3×3 stem and a 1×1 head.

    Args:
        classes: Outputs.
        early_strides: Of the stem and of the second stage: 2 and 2 for images of 224×224; 1 and 1 for 32×32, where the
            last map is 4×4 then.
    """

    def __init__(self, classes: int = 1000, *, early_strides: tuple[int, int] = (2, 2)) -> None:
        super().__init__()
        layers: list[nn.Module] = conv_bn(3, 32, 3, stride=early_strides[0])
        channels = 32
        for number, (expansion, wanted, repeats, stride_of_paper) in enumerate(STAGES):
            stride = early_strides[1] if number == 1 else stride_of_paper
            for repeat in range(repeats):
                layers.append(InvertedResidual(channels, wanted, expansion, stride if repeat == 0 else 1))
                channels = wanted
        layers += conv_bn(channels, LAST, 1)
        self.features = nn.Sequential(*layers)
        self.dropout = nn.Dropout(0.2)
        self.classifier = nn.Linear(LAST, classes)
        he_normal(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.dropout(F.adaptive_avg_pool2d(self.features(x), 1).flatten(1)))
