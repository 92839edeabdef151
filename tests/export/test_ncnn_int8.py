"""int8 files for ncnn beside layers of every other kind: their weights are carried over, and what has no int8 form is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgekit.bundle import Bundle
from edgekit.compress.pipeline import compress
from edgekit.data.dataset import Dataset, Split
from edgekit.errors import ExportError
from edgekit.export.ncnn_model import Layer, read_param, read_weights, write_weights
from edgekit.export.run import export
from edgekit.program import export_program
from edgekit.testing import networks
from edgekit.testing.exporters import bundle_of

Function = Callable[[Any, torch.Tensor], torch.Tensor]


class Between(nn.Module):
    """A convolution, something else, and a linear layer."""

    def __init__(self, function: Function, layer: nn.Module) -> None:
        super().__init__()
        self.function, self.layer = function, layer
        self.convolution = nn.Conv2d(3, 8, 3, padding=1)
        self.head = nn.LazyLinear(networks.CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.function(self.layer, F.relu(self.convolution(x))).flatten(1))


def _plainly(layer: Any, x: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = layer(x)
    return result


def _over_positions(layer: Any, x: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = layer(x.flatten(2).transpose(1, 2))
    return result


def _over_time(layer: Any, x: torch.Tensor) -> torch.Tensor:
    result: torch.Tensor = layer(x.mean(2).transpose(1, 2))[0]
    return result


CASES: dict[str, tuple[Function, Callable[[], nn.Module], set[str]]] = {
    "group norm": (_plainly, lambda: nn.GroupNorm(2, 8), {"GroupNorm"}),
    "instance norm": (_plainly, lambda: nn.InstanceNorm2d(8, affine=True), {"InstanceNorm"}),
    "PReLU": (lambda f, x: f(x - 0.3), lambda: nn.PReLU(8), {"PReLU"}),
    "layer norm": (_over_positions, lambda: nn.LayerNorm(8), {"LayerNorm"}),
    "linear behind positions": (_over_positions, lambda: nn.Linear(8, 6), {"InnerProduct"}),
    "linear without a bias": (_over_positions, lambda: nn.Linear(8, 6, bias=False), {"InnerProduct"}),
    "linear behind rows and columns": (lambda f, x: f(x.permute(0, 2, 3, 1)), lambda: nn.Linear(8, 6), {"InnerProduct"}),
    "LSTM": (_over_time, lambda: nn.LSTM(8, 6, batch_first=True, bidirectional=True), {"LSTM"}),
    "GRU": (_over_time, lambda: nn.GRU(8, 6, batch_first=True), {"GRU"}),
    "one dimension": (lambda f, x: f(x.mean(2)), lambda: nn.Conv1d(8, 6, 3, padding=1), {"Convolution1D"}),
    "one dimension, transposed": (lambda f, x: f(x.mean(2)), lambda: nn.ConvTranspose1d(8, 6, 4, 2, 1), {"Deconvolution1D"}),
    "three dimensions": (
        lambda f, x: f(x.unsqueeze(2)), lambda: nn.Conv3d(8, 6, (1, 3, 3), padding=(0, 1, 1)), {"Convolution3D"},
    ),
    "a product of matrices": (lambda f, x: f(x.mean((2, 3))), lambda: Product(), {"InnerProduct"}),
}  # fmt: skip


class Product(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(8, 6)), nn.Parameter(torch.randn(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.addmm(self.bias, x, self.weight)


@pytest.mark.parametrize("name", CASES)
def test_other_layers_keep_their_weights(name: str, tmp_path: Path) -> None:
    function, layer, types = CASES[name]
    torch.manual_seed(0)
    network = Between(function, layer()).eval()
    network(networks.images(1))
    bundle = bundle_of(Bundle(export_program(network, networks.INPUT_SHAPE), networks.INPUT_SHAPE), "int8")
    (file,) = export(bundle, "ncnn", output=tmp_path)
    assert file.parity["agreement"]["sqnr_db"] > 80
    layers = read_param(file.path)
    assert types <= {found.type for found in layers}
    in_int8 = [found for found in layers if found.type in ("Convolution", "InnerProduct") and 8 in found.params]
    # The convolution and the head, and the layer between them where it is linear.
    assert len(in_int8) == 2 + (name.startswith("linear"))
    told = [note for note in file.parity["lowering"] if "no int8 kernels for convolutions of one dimension" in note]
    assert len(told) == (name == "one dimension")
    assert (file.parity["int8_macs_share"] == 1) == (name not in NOT_IN_INT8)


NOT_IN_INT8 = {
    "LSTM", "GRU", "one dimension", "one dimension, transposed", "three dimensions",
    "a product of matrices",
}  # fmt: skip


def test_an_encoder_has_int8_layers(tmp_path: Path) -> None:
    (file,) = export(bundle_of("encoder", "int8"), "ncnn", output=tmp_path)
    assert file.parity["agreement"]["sqnr_db"] > 60
    layers = read_param(file.path)
    assert sum(layer.type == "InnerProduct" and 8 in layer.params for layer in layers) == 9


def test_layers_that_become_ncnn_s_attention_are_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="one attention layer of query, key, value, out") as caught:
        export(bundle_of("attention", "int8"), "ncnn", output=tmp_path)
    assert caught.value.remedy == "Keep them in float: quantize:keep_float=[query,key,value,out]."
    bundle = compress(bundle_of("attention"), caught.value.remedy.split()[-1].rstrip("."), _data())
    (file,) = export(bundle, "ncnn", data=_data(), output=tmp_path)
    # ncnn does not round what is inside of its attention.
    assert file.parity["agreement"]["sqnr_db"] > 35
    assert "MultiHeadAttention" in {layer.type for layer in read_param(file.path)}


def _data() -> Dataset:
    split = Split(networks.images(32).numpy(), np.arange(32) % networks.CLASSES)
    return Dataset("smooth", tuple(map(str, range(networks.CLASSES))), split, split, split)


def test_weights_are_written_as_they_were_read(tmp_path: Path) -> None:
    """Layers of all kinds, with arrays that begin with a tag and arrays that do not."""
    params: dict[str, dict[int, str]] = {
        "Embed": {0: "3", 1: "5", 2: "1", 3: "15"}, "RMSNorm": {0: "4", 2: "1"}, "Bias": {0: "3"}, "Normalize": {3: "1"},
        "MultiHeadAttention": {0: "4", 1: "2", 2: "24", 3: "5", 4: "7"}, "RNN": {0: "3", 1: "12", 2: "2"},
        "Gemm": {5: "1", 6: "1", 7: "2", 8: "3", 9: "5", 10: "4"}, "BatchNorm": {0: "3"}, "Scale": {0: "3", 1: "1"},
        "MemoryData": {0: "3", 1: "2"}, "ConvolutionDepthWise1D": {0: "2", 5: "1", 6: "6"},
    }  # fmt: skip
    sizes = {
        "Embed": [15, 3], "RMSNorm": [4], "Bias": [3], "Normalize": [1], "MultiHeadAttention": [24, 4, 20, 4, 28, 4, 24, 6],
        "RNN": [12, 6, 18], "Gemm": [15, 3], "BatchNorm": [3] * 4, "Scale": [3, 3], "MemoryData": [6],
        "ConvolutionDepthWise1D": [6, 2],
    }  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    layers = [
        Layer(kind, kind, [], [], params[kind], [torch.randn(n, generator=generator).numpy() for n in sizes[kind]])
        for kind in params
    ]
    write_weights(layers, tmp_path / "a.bin")
    again = [Layer(layer.type, layer.name, [], [], layer.params) for layer in layers]
    read_weights(again, tmp_path / "a.bin")
    for one, other in zip(layers, again, strict=True):
        assert [array.tolist() for array in one.arrays] == [array.tolist() for array in other.arrays]
