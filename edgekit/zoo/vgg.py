"""VGG: Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", ICLR 2015, table 1.

With batch norm as in Ioffe and Szegedy (ICML 2015), and for 32×32 images with a smaller classifier, as trained on CIFAR by
many. Layers are named as in torchvision, whose weights load.
"""

from __future__ import annotations

import torch
from torch import nn

from edgekit.zoo.initialization import he_normal

# Output channels of the 3×3 convolutions of each stage, by the number of layers with weights; a pooling ends each stage.
PLANS = {
    11: ((64,), (128,), (256, 256), (512, 512), (512, 512)),
    16: ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512)),
}


class Vgg(nn.Module):
    """Five stages of 3×3 convolutions and a max pooling, then three linear layers.

    Args:
        depth: 11 or 16 layers with weights.
        batch_norm: A batch norm behind each convolution.
        size: Height and width of the input, a multiple of 32.
        hidden: Width of the two hidden linear layers.
        width: The convolutions' numbers of channels are multiplied by it.
        classes: Outputs.
    """

    def __init__(
        self,
        depth: int,
        *,
        batch_norm: bool = False,
        size: int = 224,
        hidden: int = 4096,
        width: float = 1.0,
        classes: int = 1000,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for stage in PLANS[depth]:
            for wanted in stage:
                layers.append(nn.Conv2d(channels, int(wanted * width), 3, padding=1))
                channels = int(wanted * width)
                layers += [nn.BatchNorm2d(channels)] if batch_norm else []
                layers.append(nn.ReLU())
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Linear(channels * (size // 32) ** 2, hidden), nn.ReLU(), nn.Dropout(0.5),
            nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(0.5),
            nn.Linear(hidden, classes),
        )  # fmt: skip
        he_normal(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x).flatten(1))
