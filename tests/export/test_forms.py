"""Layers as users write them, whose form a converter or a runtime does not have: proved in every format all the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import edgekit
from edgekit.bundle import Bundle
from edgekit.compress.quantize.plan import make_plan
from edgekit.compress.quantize.static import Quantize
from edgekit.compress.step import Context
from edgekit.cost import cost_of
from edgekit.data.dataset import Dataset, Split
from edgekit.export.exporter import EXPORTERS
from edgekit.export.lowering import Q
from edgekit.program import export_program, trainable

SHAPE = (3, 8, 6)


class Forms(nn.Module):
    """Repeated channels, an even kernel padded by name, the usual upsampling, adaptive maxima, attention of one head …"""

    def __init__(self) -> None:
        super().__init__()
        self.even, self.up = nn.Conv2d(3, 4, 4, padding="same"), nn.ConvTranspose2d(4, 4, 3, 2, 1, output_padding=1)
        self.norm, self.head = nn.InstanceNorm2d(4, affine=True), nn.Linear(4, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.up(F.relu(self.even(x[:, :1].repeat(1, 3, 1, 1)))))
        x = F.adaptive_max_pool2d(x, (4, 3)) + 0.1 * F.relu(F.adaptive_max_pool2d(x, 1)) ** 3
        x = x.flatten(2).transpose(1, 2)
        return self.head(F.scaled_dot_product_attention(x, x, x, is_causal=True).mean(1))


class Viewed(nn.Module):
    """What most tutorials write before the classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.head = nn.Conv2d(3, 4, 3), nn.Linear(96, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.convolution(x))
        return self.head(x.view(x.size(0), -1))


@pytest.mark.parametrize("network", [Forms, Viewed])
@pytest.mark.parametrize("format", EXPORTERS)
def test_forms_are_proved(format: str, network: type[nn.Module], tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(6, *SHAPE).numpy()
    bundle = Bundle(export_program(network(), SHAPE), SHAPE).with_samples(x, np.arange(6) % 5)
    (file,) = edgekit.export(bundle, format, output=tmp_path)
    assert file.parity["agreement"]["sqnr_db"] > 80


class Gated(nn.Module):
    """A sigmoid's gate, an average that counts its padding, and a softmax at the end: grids and borders of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.gate, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 1), nn.Linear(96, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.body(x)) * torch.sigmoid(self.gate(x))
        x = F.avg_pool2d(x + 1, 3, 2, 1)
        return F.softmax(self.head(x.flatten(1)), 1).flatten(1)


@pytest.mark.parametrize("format", EXPORTERS)
def test_int8_forms_are_proved(format: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    data = _noise()
    small, _ = Quantize(images=16).apply(Bundle(export_program(Gated(), SHAPE), SHAPE), Context(data=data))
    grids = {node.args[0].target: node.args[1:3] for node in small.module().graph.nodes if node.target is Q}
    assert grids[torch.ops.aten.sigmoid.default] == grids[torch.ops.aten.softmax.int] == (1 / 256, -128)
    (file,) = edgekit.export(small, format, data=data, output=tmp_path)
    # Borders that are off by the zero point leave some 20 dB.
    assert file.parity["agreement"]["sqnr_db"] is None or file.parity["agreement"]["sqnr_db"] > 30
    assert file.parity["int8_macs_share"] == 1


class Resized(nn.Module):
    """Resized in ways that stay in float, between layers of integers."""

    def __init__(self, channels: int, **how: Any) -> None:
        super().__init__()
        self.body, self.head, self.how = nn.Conv2d(3, channels, 3, padding=1), nn.Linear(channels, 5), how

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.interpolate(F.relu(self.body(x)), **self.how)
        return self.head(F.relu(x - 0.5).mean((2, 3)))


BICUBIC = {"scale_factor": 2, "mode": "bicubic"}


@pytest.mark.parametrize(
    ("channels", "how"),
    # As many channels as rows, too: axes that are taken for each other make no error then, but another function.
    [(8, BICUBIC), (12, BICUBIC), (12, {"size": (5, 7), "mode": "bilinear", "antialias": True})],
    ids=["bicubic, 8 channels", "bicubic", "antialiased"],
)
@pytest.mark.parametrize("format", EXPORTERS)
def test_resizing_beside_integers_is_proved(format: str, channels: int, how: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    data = _noise()
    whole = Bundle(export_program(Resized(channels, **how), SHAPE), SHAPE)
    small, _ = Quantize(images=16).apply(whole, Context(data=data))
    for bundle, least in ((whole, 80), (small, 30)):
        (file,) = edgekit.export(bundle, format, data=data, output=tmp_path)
        assert file.parity["agreement"]["sqnr_db"] is None or file.parity["agreement"]["sqnr_db"] > least


@pytest.mark.parametrize(
    ("bits", "grids"),
    [
        (8, {"sigmoid": (1 / 256, -128), "tanh": (1 / 128, 0), "log_softmax": (1 / 16, 127)}),
        # A logarithm of a softmax on a grid of 1 / 32768 would be cut off at -1: it is calibrated.
        (16, {"sigmoid": (1 / 32768, 0), "tanh": (1 / 32768, 0)}),
    ],
)
def test_grids_that_operators_give_hold_what_they_give(bits: int, grids: dict[str, tuple[float, int]]) -> None:
    class Several(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (torch.sigmoid(x) + torch.tanh(x)) * F.log_softmax(x, 1) + torch.cat([torch.sigmoid(x), x * 9], 1)[
                :, :3
            ]

    plan = make_plan(trainable(export_program(Several(), SHAPE)))
    found = {str(leader.target).split(".")[1]: fixed for leader, fixed in plan.fixed(bits).items()}
    assert {name: (grid.scale, grid.zero_point) for name, grid in found.items()} == grids
    assert all(grid.bits == bits for grid in found.values())
    assert len(plan.fixed(bits)) == len(grids)  # the sigmoid that shares its scale with a wider tensor has none


def test_indices_stay_integers_when_a_network_is_quantized() -> None:
    class Embedding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.table = nn.Conv2d(3, 4, 3), nn.Embedding(10, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.table((self.layer(x).mean((2, 3)) * 9).long().clamp(0, 9)).flatten(1)

    bundle = Bundle(export_program(Embedding(), SHAPE), SHAPE)
    small, _ = Quantize(images=16).apply(bundle, Context(data=_noise(16)))
    x = torch.from_numpy(_noise().test.images(np.arange(4)))
    assert small.module()(x).shape == (4, 16)


def _noise(classes: int = 5) -> Dataset:
    images = np.random.default_rng(0).standard_normal((24, *SHAPE)).astype(np.float32)
    split = Split(images, np.arange(24) % 4)
    return Dataset("noise", tuple(map(str, range(classes))), split, split, split)


def test_a_network_padded_by_name_is_counted_and_quantized_as_any_other(tmp_path: Path) -> None:
    def network(padding: str | int) -> nn.Module:
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 8, 3, padding=padding), nn.ReLU(), nn.Conv2d(8, 8, 5, padding="same"), nn.Flatten()]
        return nn.Sequential(*layers, nn.Linear(8 * 48, 4))

    data = _noise(4)
    by_name, by_number = (Bundle(export_program(network(p), SHAPE), SHAPE) for p in ("same", 1))
    assert cost_of(by_name.module()).macs == cost_of(by_number.module()).macs > 0
    small, _ = Quantize(images=16).apply(by_name, Context(data=data))
    (file,) = edgekit.export(small, "onnx", data=data, output=tmp_path)
    assert file.parity["int8_macs_share"] == 1
