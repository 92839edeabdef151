"""Network in Network: Lin, Chen and Yan, ICLR 2014: the network for CIFAR-10, and the authors' for ImageNet.

A layer of a small perceptron is a convolution followed by 1×1 convolutions. The last one gives a map for each class, whose
mean is the output: there is no linear layer.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

from edgekit.zoo.initialization import he_normal


def perceptron(
    channels_in: int, widths: tuple[int, ...], kernel: int, stride: int = 1, padding: int = 0
) -> list[nn.Module]:
    """A convolution and 1×1 convolutions, each followed by a ReLU."""
    layers: list[nn.Module] = [nn.Conv2d(channels_in, widths[0], kernel, stride, padding), nn.ReLU()]
    for before, after in pairwise(widths):
        layers += [nn.Conv2d(before, after, 1), nn.ReLU()]
    return layers


class _NetworkInNetwork(nn.Module):
    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.features = nn.Sequential(*layers)
        he_normal(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.adaptive_avg_pool2d(self.features(x), 1).flatten(1)


def nin_imagenet(classes: int = 1000) -> nn.Module:
    """Four perceptron layers for 224×224, as the authors published it for Caffe."""
    pool = nn.MaxPool2d(3, 2, ceil_mode=True)
    return _NetworkInNetwork([
        *perceptron(3, (96, 96, 96), 11, 4), pool,
        *perceptron(96, (256, 256, 256), 5, 1, 2), pool,
        *perceptron(256, (384, 384, 384), 3, 1, 1), pool, nn.Dropout(0.5),
        *perceptron(384, (1024, 1024, classes), 3, 1, 1),
    ])  # fmt: skip


def nin_cifar(classes: int = 10) -> nn.Module:
    """Three perceptron layers for 32×32, as the authors published it for Caffe."""
    return _NetworkInNetwork([
        *perceptron(3, (192, 160, 96), 5, 1, 2), nn.MaxPool2d(3, 2, ceil_mode=True), nn.Dropout(0.5),
        *perceptron(96, (192, 192, 192), 5, 1, 2), nn.AvgPool2d(3, 2, ceil_mode=True), nn.Dropout(0.5),
        *perceptron(192, (192, 192, classes), 3, 1, 1),
    ])  # fmt: skip
