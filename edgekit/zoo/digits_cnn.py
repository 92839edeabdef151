"""The embedded default: a small CNN for 8×8 digits that holds what real networks hold.

A residual block, a depthwise-separable block, batch norm, ReLU and ReLU6, pooling and a linear layer.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class DigitsCnn(nn.Module):
    """About 60 000 parameters and 2.4 million MACs."""

    def __init__(self, width: int = 32, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.bn0 = nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.expand = nn.Conv2d(width, 3 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(3 * width)
        self.depthwise = nn.Conv2d(3 * width, 3 * width, 3, stride=2, padding=1, groups=3 * width, bias=False)
        self.bn4 = nn.BatchNorm2d(3 * width)
        self.project = nn.Conv2d(3 * width, 2 * width, 1, bias=False)
        self.bn5 = nn.BatchNorm2d(2 * width)
        self.conv3 = nn.Conv2d(2 * width, 2 * width, 3, padding=1, bias=False)
        self.bn6 = nn.BatchNorm2d(2 * width)
        self.head = nn.Linear(2 * width, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn0(self.stem(x)))
        y = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(y)) + x)
        x = F.relu6(self.bn3(self.expand(x)))
        x = F.relu6(self.bn4(self.depthwise(x)))
        x = self.bn5(self.project(x))
        x = F.relu(self.bn6(self.conv3(x)))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))
