"""Small seeded networks, one for each feature of a graph that a pass has to get right."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

INPUT_SHAPE = (3, 16, 16)
CLASSES = 7


class Plain(nn.Module):
    """Convolution, batch norm, pooling, flatten, two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.conv2, self.bn2 = nn.Conv2d(12, 20, 3, padding=1), nn.BatchNorm2d(20)
        self.hidden, self.head = nn.Linear(20 * 4 * 4, 24), nn.Linear(24, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 2)
        x = F.max_pool2d(F.relu(self.bn2(self.conv2(x))), 2)
        return self.head(F.relu(self.hidden(x.flatten(1))))


class Residual(nn.Module):
    """A projection and a parameter-free shortcut: strided slice and channel padding, as in CIFAR ResNets."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn0 = nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.conv1, self.bn1 = nn.Conv2d(12, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.conv2, self.bn2 = nn.Conv2d(12, 20, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(20)
        self.head = nn.Linear(20, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn0(self.stem(x)))
        x = F.relu(self.bn1(self.conv1(x)) + x)
        shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))
        x = F.relu(self.bn2(self.conv2(x)) + shortcut)
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Concat(nn.Module):
    """Two branches side by side, as in SqueezeNet and Inception."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 10, 3, padding=1)
        self.left, self.right = nn.Conv2d(10, 8, 1), nn.Conv2d(10, 12, 3, padding=1)
        self.mix, self.head = nn.Conv2d(20, 16, 1), nn.Linear(16, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(x))
        x = torch.cat([F.relu(self.left(x)), F.relu(self.right(x))], 1)
        return self.head(F.relu(self.mix(x)).mean((2, 3)))


class Depthwise(nn.Module):
    """An inverted residual with ReLU6, as in MobileNetV2."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn0 = nn.Conv2d(3, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8)
        self.expand, self.bn1 = nn.Conv2d(8, 24, 1, bias=False), nn.BatchNorm2d(24)
        self.depthwise, self.bn2 = nn.Conv2d(24, 24, 3, padding=1, groups=24, bias=False), nn.BatchNorm2d(24)
        self.project, self.bn3 = nn.Conv2d(24, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.dropout, self.head = nn.Dropout(0.2), nn.Linear(8, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu6(self.bn0(self.stem(x)))
        y = F.relu6(self.bn1(self.expand(x)))
        y = F.relu6(self.bn2(self.depthwise(y)))
        x = x + self.bn3(self.project(y))
        return self.head(self.dropout(F.adaptive_avg_pool2d(x, 1).flatten(1)))


class Grouped(nn.Module):
    """A grouped convolution with channels in and out that are coupled across its groups, as in ResNeXt."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn0 = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.grouped, self.bn1 = nn.Conv2d(16, 24, 3, padding=1, groups=4, bias=False), nn.BatchNorm2d(24)
        self.mix, self.head = nn.Conv2d(24, 12, 1), nn.Linear(12, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn1(self.grouped(F.relu(self.bn0(self.stem(x))))))
        return self.head(F.avg_pool2d(F.relu(self.mix(x)), 16).view(x.shape[0], -1))


class InPlace(nn.Module):
    """In-place activations and a functional convolution, as users write them."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(10, 3, 3, 3))
        self.body = nn.Sequential(
            nn.BatchNorm2d(10), nn.ReLU(inplace=True), nn.Conv2d(10, 12, 3, padding=1), nn.ReLU(inplace=True)
        )
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.body(F.conv2d(x, self.weight, padding=1))
        return self.head(x.mean((2, 3)))


class ChannelShuffle(nn.Module):
    """Grouped 1×1 convolutions with a channel shuffle between them, and a concatenating shortcut, as in ShuffleNet V1."""

    def __init__(self, groups: int = 3) -> None:
        super().__init__()
        self.groups = groups
        self.stem, self.bn0 = nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.reduce, self.bn1 = nn.Conv2d(12, 18, 1, groups=groups, bias=False), nn.BatchNorm2d(18)
        self.depthwise, self.bn2 = nn.Conv2d(18, 18, 3, 2, 1, groups=18, bias=False), nn.BatchNorm2d(18)
        self.expand, self.bn3 = nn.Conv2d(18, 12, 1, groups=groups, bias=False), nn.BatchNorm2d(12)
        self.mix, self.head = nn.Conv2d(24, 16, 1), nn.Linear(16, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn0(self.stem(x)))
        y = F.relu(self.bn1(self.reduce(x)))
        n, c, h, w = y.shape
        y = y.view(n, self.groups, c // self.groups, h, w).transpose(1, 2).reshape(n, c, h, w)
        y = self.bn3(self.expand(self.bn2(self.depthwise(y))))
        x = F.relu(torch.cat([F.avg_pool2d(x, 3, 2, 1), y], 1))
        return self.head(F.relu(self.mix(x)).mean((2, 3)))


class SplitShuffle(nn.Module):
    """Channels split in two, one half worked on, both shuffled together, as in ShuffleNet V2."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn0 = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.conv1, self.bn1 = nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.depthwise, self.bn2 = nn.Conv2d(8, 8, 3, 1, 1, groups=8, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn3 = nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.mix, self.head = nn.Conv2d(16, 24, 1), nn.Linear(24, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn0(self.stem(x)))
        kept, y = x.chunk(2, 1)
        y = F.relu(self.bn1(self.conv1(y)))
        y = F.relu(self.bn3(self.conv2(self.bn2(self.depthwise(y)))))
        x = torch.cat([kept, y], 1)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.head(F.relu(self.mix(x)).mean((2, 3)))


class SqueezeExcite(nn.Module):
    """Channels weighted by a small network on their means, as in MobileNetV3."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn0 = nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(16)
        self.expand, self.bn1 = nn.Conv2d(16, 24, 1, bias=False), nn.BatchNorm2d(24)
        self.reduce, self.excite = nn.Conv2d(24, 8, 1), nn.Conv2d(8, 24, 1)
        self.project, self.bn2 = nn.Conv2d(24, 16, 1, bias=False), nn.BatchNorm2d(16)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.hardswish(self.bn0(self.stem(x)))
        y = F.hardswish(self.bn1(self.expand(x)))
        scale = F.hardsigmoid(self.excite(F.relu(self.reduce(F.adaptive_avg_pool2d(y, 1)))))
        x = x + self.bn2(self.project(y * scale))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Slices(nn.Module):
    """Channels taken apart by slices and a split of uneven sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.wide = nn.Conv2d(3, 20, 3, padding=1), nn.Conv2d(8, 16, 3, padding=1)
        self.left, self.right = nn.Conv2d(12, 10, 1), nn.Conv2d(10, 10, 1)
        self.head = nn.Linear(20, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(x))
        first, rest = x[:, :8], x[:, 8:]
        a, b = torch.split(F.relu(self.wide(first)), [6, 10], 1)
        y = F.relu(self.left(rest)) + F.relu(self.right(b))
        return self.head(torch.cat([y, a, b[:, :4]], 1).mean((2, 3)))


class PixelShuffle(nn.Module):
    """Channels moved into space, as in super-resolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.up = nn.Conv2d(3, 12, 3, stride=2, padding=1), nn.Conv2d(12, 24, 3, padding=1)
        self.mix, self.head = nn.Conv2d(6, 16, 3, padding=1), nn.Linear(16, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(F.pixel_shuffle(self.up(F.relu(self.stem(x))), 2))
        return self.head(F.relu(self.mix(x)).mean((2, 3)))


class Transposed(nn.Module):
    """A transposed convolution with a skip, as in segmentation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down = nn.Conv2d(3, 10, 3, padding=1), nn.Conv2d(10, 16, 3, stride=2, padding=1)
        self.up, self.mix = nn.ConvTranspose2d(16, 10, 2, stride=2), nn.Conv2d(20, 14, 1)
        self.head = nn.Linear(14, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skip = F.relu(self.stem(x))
        x = F.relu(self.up(F.relu(self.down(skip))))
        return self.head(F.relu(self.mix(torch.cat([skip, x], 1))).mean((2, 3)))


class GroupedTransposed(nn.Module):
    """Transposed convolutions that enlarge each channel by itself, make two of each, and work in groups."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 4, stride=4)
        self.depthwise = nn.ConvTranspose2d(12, 12, 4, 2, 1, groups=12)
        self.twice = nn.ConvTranspose2d(12, 24, 2, 2, groups=12)
        self.grouped = nn.ConvTranspose2d(24, 16, 4, 2, 1, groups=4)
        self.mix, self.head = nn.Conv2d(16, 14, 1), nn.Linear(14, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.depthwise(F.relu(self.stem(x))))
        x = F.relu(self.grouped(F.relu(self.twice(x))))
        return self.head(F.relu(self.mix(x)).mean((2, 3)))


class Recurrent(nn.Module):
    """Columns of a feature map read in both directions by two layers of LSTM, then by two of GRU, as where text is read."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.lstm = nn.LSTM(8 * 8, 12, 2, bidirectional=True, batch_first=True)
        self.gru, self.head = nn.GRU(24, 10, 2, batch_first=True), nn.Linear(10, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(x)).permute(0, 3, 1, 2).flatten(2)
        x, _ = self.gru(self.lstm(x)[0])
        return self.head(x.mean(1))


class Attention(nn.Module):
    """A small vision transformer: patches, multi-head attention, layer norm, a perceptron, each with a shortcut."""

    def __init__(self, width: int = 24, heads: int = 3) -> None:
        super().__init__()
        self.heads, self.size = heads, width // heads
        self.patches = nn.Conv2d(3, width, 4, stride=4)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out, self.wide, self.narrow = nn.Linear(width, width), nn.Linear(width, 48), nn.Linear(48, width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        y = self.norm1(x)
        q, k, v = (
            layer(y).unflatten(2, (self.heads, self.size)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        weights = (q @ k.transpose(2, 3) / self.size**0.5).softmax(-1)
        x = x + self.out((weights @ v).transpose(1, 2).flatten(2))
        x = x + self.narrow(F.gelu(self.wide(self.norm2(x))))
        return self.head(x.mean(1))


class Encoder(nn.Module):
    """torch's own encoder layers, one with time first, one with the batch first."""

    def __init__(self, width: int = 24, heads: int = 3) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, stride=4)
        self.first = nn.TransformerEncoderLayer(width, heads, 48, norm_first=True)
        self.second = nn.TransformerEncoderLayer(width, heads, 40, activation="gelu", batch_first=True)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(self.patches(x).flatten(2).permute(2, 0, 1))
        return self.head(self.second(x.transpose(0, 1)).mean(1))


class Inception(nn.Module):
    """Three branches that begin with a 1×1 convolution of the same tensor, a pooled one, and all put together."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn0 = nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.one, self.bn1 = nn.Conv2d(12, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.reduce3, self.bn2 = nn.Conv2d(12, 6, 1, bias=False), nn.BatchNorm2d(6)
        self.reduce5, self.bn3 = nn.Conv2d(12, 4, 1, bias=False), nn.BatchNorm2d(4)
        self.three, self.bn4 = nn.Conv2d(6, 10, 3, padding=1, bias=False), nn.BatchNorm2d(10)
        self.five, self.bn5 = nn.Conv2d(4, 6, 5, padding=2, bias=False), nn.BatchNorm2d(6)
        self.pooled, self.bn6 = nn.Conv2d(12, 4, 1, bias=False), nn.BatchNorm2d(4)
        self.head = nn.Linear(28, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn0(self.stem(x)))
        a = F.relu(self.bn1(self.one(x)))
        b = F.relu(self.bn4(self.three(F.relu(self.bn2(self.reduce3(x))))))
        c = F.relu(self.bn5(self.five(F.relu(self.bn3(self.reduce5(x))))))
        d = F.relu(self.bn6(self.pooled(F.max_pool2d(x, 3, 1, 1))))
        return self.head(torch.cat([a, b, c, d], 1).mean((2, 3)))


class RepVgg(nn.Module):
    """A 3×3 convolution, a 1×1 convolution and the identity, each with its batch norm, added; dense and depthwise."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Conv2d(3, 12, 3, 2, 1, bias=False), nn.Conv2d(3, 12, 1, 2, bias=False)
        self.wide2, self.narrow2 = nn.Conv2d(12, 12, 3, 1, 1, bias=False), nn.Conv2d(12, 12, 1, bias=False)
        self.wide3 = nn.Conv2d(12, 12, 3, 1, 1, groups=12, bias=False)
        self.narrow3 = nn.Conv2d(12, 12, 1, groups=12, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(12) for _ in range(8))
        self.head = nn.Linear(12, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n = self.norms
        x = F.relu(n[0](self.wide(x)) + n[1](self.narrow(x)))
        x = F.relu(n[2](self.wide2(x)) + n[3](self.narrow2(x)) + n[4](x))
        x = F.relu(n[5](self.wide3(x)) + n[6](self.narrow3(x)) + n[7](x))
        return self.head(x.mean((2, 3)))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "plain": Plain,
    "residual": Residual,
    "concat": Concat,
    "depthwise": Depthwise,
    "grouped": Grouped,
    "in-place": InPlace,
}
"""Every network by the feature that it stands for; tests run over all of them."""

FEATURES: dict[str, Callable[[], nn.Module]] = {
    **NETWORKS,
    "channel-shuffle": ChannelShuffle,
    "split-shuffle": SplitShuffle,
    "squeeze-excite": SqueezeExcite,
    "slices": Slices,
    "pixel-shuffle": PixelShuffle,
    "transposed": Transposed,
    "grouped-transposed": GroupedTransposed,
    "recurrent": Recurrent,
    "attention": Attention,
    "encoder": Encoder,
    "inception": Inception,
    "rep-vgg": RepVgg,
}
"""These and the features that channels flow through in less common ways; pruning is tried on all."""


def make(name: str, seed: int = 0) -> nn.Module:
    """A network with seeded weights and batch-norm statistics that are not trivial, in evaluation."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # biases begin at random
        network = {**FEATURES, **NETWORKS}[name]()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.normal_(0, 0.2, generator=generator)
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.normal_(0, 0.2, generator=generator)
                module.running_var.uniform_(0.5, 2.0, generator=generator)
        for parameter in network.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, (2.0 / parameter[0].numel()) ** 0.5, generator=generator)
            elif parameter.dim() == 1 and parameter.shape[0] == CLASSES:
                parameter.normal_(0, 0.1, generator=generator)
    return network.eval()


def images(count: int, seed: int = 1) -> torch.Tensor:
    """Smooth seeded inputs, shape (count, 3, 16, 16): noise would hide errors of layout and order."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, 4, 4, generator=generator)
    return F.interpolate(coarse, size=INPUT_SHAPE[1:], mode="bilinear")
