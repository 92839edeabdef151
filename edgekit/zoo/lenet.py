"""LeNet-5: LeCun, Bottou, Bengio and Haffner, "Gradient-Based Learning Applied to Document Recognition", 1998, section II.B.

As it is taught today: C3 reads all maps of S2 (the paper's reads a choice of them, table I: 1,516 parameters instead of 2,416),
the poolings have no weights, and a linear layer stands for the distances to drawn digits.
"""

from __future__ import annotations

import torch
from torch import nn

from edgekit.zoo.initialization import he_normal


class LeNet5(nn.Module):
    """Three convolutions, two average poolings, two linear layers; takes 32×32 gray images.

    Args:
        classes: Outputs.
    """

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        self.c1, self.c3, self.c5 = nn.Conv2d(1, 6, 5), nn.Conv2d(6, 16, 5), nn.Conv2d(16, 120, 5)
        self.pool = nn.AvgPool2d(2)
        self.f6, self.output = nn.Linear(120, 84), nn.Linear(84, classes)
        he_normal(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(torch.tanh(self.c1(x)))
        x = self.pool(torch.tanh(self.c3(x)))
        x = torch.tanh(self.c5(x)).flatten(1)
        return self.output(torch.tanh(self.f6(x)))
