"""The families of the zoo, scaled down: side by side in one network, so that what starts slowly starts once.

AlexNet, SqueezeNet and MobileNet V1 and V2 are not among them: they hold nothing that these don't hold.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import nn

from edgekit.bundle import Bundle
from edgekit.program import export_program
from edgekit.zoo.densenet import DenseNet
from edgekit.zoo.ghostnet import BLOCKS, GhostNet
from edgekit.zoo.googlenet import Inception, conv_relu
from edgekit.zoo.initialization import he_normal, settle_statistics
from edgekit.zoo.keyword_rnn import KeywordRnn
from edgekit.zoo.keyword_transformer import KeywordTransformer
from edgekit.zoo.lenet import LeNet5
from edgekit.zoo.mobilenet_v3 import Bneck
from edgekit.zoo.nin import nin_cifar
from edgekit.zoo.resnet import ResNet
from edgekit.zoo.shufflenet_v1 import ShuffleNetV1
from edgekit.zoo.shufflenet_v2 import ShuffleNetV2
from edgekit.zoo.vgg import Vgg
from edgekit.zoo.xception import Xception

CLASSES = 3


def _headed(*layers: nn.Module, channels: int) -> nn.Module:
    """Blocks of a family between a mean over space and a linear layer."""
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES))
    he_normal(network)
    return network


IMAGES: Mapping[str, Callable[[], nn.Module]] = {
    "lenet": lambda: nn.Sequential(nn.Conv2d(3, 1, 2, 2), LeNet5(CLASSES)),
    "nin": lambda: nin_cifar(CLASSES),
    "vgg": lambda: Vgg(11, batch_norm=True, size=64, hidden=16, width=0.125, classes=CLASSES),
    "googlenet": lambda: _headed(conv_relu(3, 8, 3, 2), Inception(8, (4, 4, 6, 2, 4, 4)), channels=18),
    "resnet": lambda: ResNet(50, blocks=(1, 1, 1, 1), width=0.25, classes=CLASSES),
    "densenet": lambda: DenseNet((2, 2), growth=8, classes=CLASSES),
    "xception": lambda: Xception(0.125, middle=1, classes=CLASSES),
    "mobilenet-v3": lambda: _headed(conv_relu(3, 8, 3, 2), Bneck(8, 5, 24, 16, True, "HS", 2), channels=16),
    "shufflenet-v1": lambda: ShuffleNetV1(3, units=(2, 1, 1), classes=CLASSES),
    "shufflenet-v2": lambda: ShuffleNetV2(0.5, units=(2, 1, 1), classes=CLASSES),
    "ghostnet": lambda: GhostNet(0.25, CLASSES, blocks=BLOCKS[2:4]),
}
SEQUENCES: Mapping[str, Callable[[], nn.Module]] = {
    "lstm": lambda: KeywordRnn("lstm", 12, coefficients=8, classes=CLASSES),
    "gru": lambda: KeywordRnn("gru", 12, coefficients=8, classes=CLASSES),
    "transformer": lambda: KeywordTransformer(width=16, heads=2, layers=2, steps=9, coefficients=8, classes=CLASSES),
}


class SideBySide(nn.Module):
    """Networks over one input, their outputs one after the other.

    Args:
        families: How each is made; each has so many :data:`CLASSES`.
    """

    def __init__(self, families: Mapping[str, Callable[[], nn.Module]]) -> None:
        super().__init__()
        self.networks = nn.ModuleDict({name: make() for name, make in families.items()})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([network(x) for network in self.networks.values()], 1)


def images() -> Bundle:
    """Those for images, on 64 × 64 pixels, with six samples."""
    return bundle(IMAGES, (3, 64, 64))


def sequences() -> Bundle:
    """Those for sequences, of nine steps, with six samples."""
    return bundle(SEQUENCES, (9, 8))


def bundle(families: Mapping[str, Callable[[], nn.Module]], shape: tuple[int, ...]) -> Bundle:
    """Some of them, with six samples.

    Args:
        families: How each is made.
        shape: Of their inputs, without the batch.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = SideBySide(families)
        settle_statistics(network, shape)
        coarse = torch.randn(6, shape[0] if len(shape) == 3 else 1, 5, 5)
    x = nn.functional.interpolate(coarse, size=shape[-2:], mode="bilinear").reshape(6, *shape)
    made = Bundle(export_program(network, shape), shape)
    with torch.no_grad():
        y = made.module()(x).reshape(6, len(families), CLASSES)
    # No family may hide behind the others: each one's outputs differ between inputs, and are of one size.
    if (y.std(0).mean(1) < 0.01).any() or (y.abs() > 100).any():
        raise AssertionError("the signal of a family died or grew on its way")
    return made.with_samples(x.numpy(), np.zeros(6, np.int64))
