"""What pnnx writes wrong into ncnn files, and edgekit mends."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import edgekit
from edgekit.bundle import Bundle
from edgekit.export.ncnn_model import Layer, read_param
from edgekit.export.ncnn_repairs import mend
from edgekit.program import export_program


@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU])
def test_states_of_both_directions_are_rows(layer: type[nn.Module], tmp_path: Path) -> None:
    """As channels, whose rows begin at multiples of four numbers, a width of 3 left the second to chance."""

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.recurrent, self.head = layer(6, 3, bidirectional=True, batch_first=True), nn.Linear(6, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.recurrent(x)[0].mean(1))

    states = [found for found in _exported(Both(), (5, 6), tmp_path) if found.type == "MemoryData"]
    assert [(s.integer(0), s.integer(1), s.integer(2)) for s in states] == [(3, 2, 0)] * len(states)
    assert states


REDUCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "means over one dimension": lambda x: torch.cat([x.mean(2), x.mean(3), x.mean(-1)], 2),
    "a mean over channels that keeps them": lambda x: x * x.mean(1, keepdim=True),
    "means over one and over two dimensions in turn": lambda x: (
        x.mean((2, 3)) + x.mean(2).mean(2) - x.mean((1, 2))[:, :4]
    ),
    "sums": lambda x: x.sum(1) * x.sum((1, 2)).unsqueeze(1),
    "products, norms and logarithms": lambda x: (
        torch.cat([x.prod(1), x.norm(dim=2), x.logsumexp(3)], 1)
        if x.shape[2] == x.shape[3]
        else x.prod(1) + x.norm(dim=1) + x.logsumexp(1)
    ),
    "extrema": lambda x: torch.cat([x.amax((2, 3)), x.amin((2, 3)), x.amax(3).amin(2), x.max(1)[0].amin(1)], 1),
    "a variance": lambda x: x.var(1) + x.std(1),
    "of a sequence": lambda x: x.flatten(2).mean(1) - x.flatten(2).amax(1),
    "of a sequence over time": lambda x: x.flatten(2).transpose(1, 2).mean(1),
}


@pytest.mark.parametrize("taken", REDUCTIONS)
def test_reductions_take_the_dimensions_they_are_told(taken: str, tmp_path: Path) -> None:
    class Reducing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution = nn.Conv2d(3, 4, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return REDUCTIONS[taken](self.convolution(x)).flatten(1)

    layers = _exported(Reducing(), (3, 6, 5), tmp_path)
    assert "Reduction" in [layer.type for layer in layers]


def _exported(network: nn.Module, shape: tuple[int, ...], folder: Path) -> list[Layer]:
    """The layers of a network's ncnn file, which was proved in ncnn."""
    torch.manual_seed(0)
    for parameter in network.parameters():
        parameter.data.copy_(torch.randn(parameter.shape) / 2)
    x = torch.randn(4, *shape).numpy()
    bundle = Bundle(export_program(network, shape), shape).with_samples(x, np.zeros(4, np.int64)).save(folder / "b")
    (file,) = edgekit.export(bundle, ["ncnn"])
    return read_param(file.path)


def test_what_is_right_or_not_understood_is_left_alone() -> None:
    def reduction(name: str, axes: str) -> Layer:
        return Layer("Reduction", name, ["a"], ["b"], {0: "3", 1: "0", -23303: axes})

    line = "torch.mean torch.mean_0 1 1 2 3 dim={} keepdim=False $input=2"
    for layer, known in (
        (reduction("mean_1", "1,1"), line.format("2")),  # a later pnnx may write it
        (reduction("mean_1", "0"), line.format("0")),  # over the batch
        (reduction("sum_1", "0"), line.format("2")),  # of another operator than the one known
        (reduction("mean_1", "0"), "torch.sum x 1 1 2 3 dim=2 keepdim=False $input=2"),
        (
            Layer("ReduceMax", "ReduceMax_3", ["a"], ["b"], {}),
            "ReduceMax ReduceMax_3 1 1 2 3 axes=0 keepdims=0 #2=(1,2)",
        ),
    ):
        before = (layer.type, dict(layer.params))
        assert not mend([layer], known)
        assert (layer.type, layer.params) == before
