"""AlexNet: Krizhevsky, Sutskever and Hinton, "ImageNet Classification with Deep Convolutional Neural Networks", NIPS 2012.

As in the paper, the second, fourth and fifth convolution are in two groups (one for each of the two GPUs then). Local response
normalization is left out: later work found it without use (Simonyan and Zisserman, ICLR 2015, section 4.1).
"""

from __future__ import annotations

import torch
from torch import nn

from edgekit.zoo.initialization import he_normal


class AlexNet(nn.Module):
    """Five convolutions with three overlapping max poolings, three linear layers; takes 224×224.

    Args:
        hidden: Width of the two hidden linear layers.
        classes: Outputs.
    """

    def __init__(self, hidden: int = 4096, classes: int = 1000) -> None:
        super().__init__()
        self.features = nn.Sequential(
            # 224×224 gives the paper's 55×55 with a padding that it does not tell.
            nn.Conv2d(3, 96, 11, 4, 2), nn.ReLU(), nn.MaxPool2d(3, 2),
            nn.Conv2d(96, 256, 5, 1, 2, groups=2), nn.ReLU(), nn.MaxPool2d(3, 2),
            nn.Conv2d(256, 384, 3, 1, 1), nn.ReLU(),
            nn.Conv2d(384, 384, 3, 1, 1, groups=2), nn.ReLU(),
            nn.Conv2d(384, 256, 3, 1, 1, groups=2), nn.ReLU(), nn.MaxPool2d(3, 2),
        )  # fmt: skip
        self.classifier = nn.Sequential(
            nn.Linear(256 * 6 * 6, hidden), nn.ReLU(), nn.Dropout(0.5),
            nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(0.5),
            nn.Linear(hidden, classes),
        )  # fmt: skip
        he_normal(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x).flatten(1))
