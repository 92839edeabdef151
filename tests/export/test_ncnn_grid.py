"""ncnn's integer grids: tensors after a ReLU use all of it, and what is written computes what is simulated."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgekit.evaluation import sqnr
from edgekit.export.ncnn import NcnnExporter
from edgekit.export.ncnn_grid import shifted, to_symmetric
from edgekit.export.ncnn_model import read_param
from edgekit.export.run import export
from edgekit.program import quantized
from edgekit.testing import networks
from edgekit.testing.exporters import bundle_of


class Chain(nn.Module):
    """Channels in packs of eight, with every kind of reader: padded, pooled, depthwise, concatenated, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.padded = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3, padding=1)
        self.pointwise, self.depthwise = nn.Conv2d(16, 24, 1), nn.Conv2d(24, 24, 3, padding=1, groups=24)
        self.left, self.right = nn.Conv2d(24, 8, 1), nn.Conv2d(24, 16, 3, padding=1)
        self.hidden, self.head = nn.Linear(24 * 36, 32), nn.Linear(32, networks.CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(x))
        x = F.max_pool2d(F.relu(self.padded(x)), 3, 2)
        x = F.relu6(self.depthwise(F.relu(self.pointwise(x))))
        x = torch.cat([F.relu(self.left(x)), F.relu(self.right(x))], 1)
        return self.head(F.relu(self.hidden(x.flatten(1))))


class Siblings(nn.Module):
    """A tensor that two integer layers read, and one that a sigmoid reads, too."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.pointwise = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 1)
        self.padded, self.after = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 1)
        self.head = nn.Linear(32, networks.CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(x))
        left, right = F.relu(self.pointwise(x)), F.relu(self.padded(x))
        left = torch.sigmoid(left) + self.after(left)
        return self.head(torch.cat([left, right], 1).mean((2, 3)))


@pytest.fixture
def chain(monkeypatch: pytest.MonkeyPatch) -> None:
    """The network, under a name."""
    torch.manual_seed(0)
    monkeypatch.setitem(networks.NETWORKS, "chain", Chain)


@pytest.mark.usefixtures("chain")
def test_every_tensor_after_a_relu_is_shifted_and_computed_as_simulated(tmp_path: Path) -> None:
    bundle = bundle_of("chain", "int8")
    groups = shifted(NcnnExporter().lower(bundle, "int8").module)
    kinds = [(len(group.relus), group.negated) for group in groups]
    # What the depthwise layer reads is not quantized: it computes in float.
    assert kinds == [(1, True), (1, False), (1, True), (2, True), (1, True)]
    (file,) = export(bundle, "ncnn", output=tmp_path)
    assert file.parity["agreement"]["sqnr_db"] > 50
    assert any(note.startswith("every depthwise convolution computes in float: ") for note in file.parity["lowering"])
    layers = read_param(file.path)
    in_int8 = {layer.name: layer.params.get(8) for layer in layers if layer.type.startswith("Convolution")}
    assert list(in_int8.values()) == ["101", "1", "1", None, "1", "1"]
    assert {layer.params.get(18) for layer in layers if layer.type == "Convolution" and layer.integer(4)} == {"127.0"}


def test_a_tensor_that_several_integer_layers_read_stays_in_int8(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    monkeypatch.setitem(networks.NETWORKS, "siblings", Siblings)
    (file,) = export(bundle_of("siblings", "int8"), "ncnn", output=tmp_path)
    assert file.parity["agreement"]["sqnr_db"] > 50
    layers = read_param(file.path)
    split = next(layer for layer in layers if layer.type == "Split")
    stem, *others = [layer for layer in layers if layer.type.startswith("Convolution")]
    assert split.inputs == stem.outputs
    assert (stem.params[8], {layer.params[8] for layer in others}) == ("101", {"1"})
    assert others[1].params[18] == "127.0"


@pytest.mark.usefixtures("chain")
def test_a_shifted_grid_is_twice_as_fine() -> None:
    bundle = bundle_of("chain", "int8")
    fine = NcnnExporter().lower(bundle, "int8").module
    coarse = bundle.module()
    to_symmetric(coarse, [])
    for node in coarse.graph.nodes:
        if (
            node.target in (quantized.quantize_per_tensor.default, quantized.dequantize_per_tensor.default)
            and node.args[2]
        ):
            node.args = (node.args[0], node.args[1] * 255 / 127, 0, *node.args[3:])
    coarse.recompile()
    x = networks.images(32)
    with torch.no_grad():
        reference = bundle_of("chain").module()(x).numpy()
        noise = [sqnr(reference, module(x).numpy()) for module in (coarse, fine)]
    assert noise[1] > noise[0] + 3


def test_residual_streams_are_shifted_as_a_whole(tmp_path: Path) -> None:
    bundle = bundle_of("residual", "int8")
    lowered = NcnnExporter().lower(bundle, "int8")
    groups = shifted(lowered.module)
    assert [(len(g.pairs), len(g.sums), len(g.reductions)) for g in groups] == [(1, 1, 0), (1, 1, 0), (0, 0, 1)]
    assert sum(len(group.sums) for group in groups) == 2
    assert all(group.negated for group in groups)
    (file,) = export(bundle, "ncnn", output=tmp_path)
    assert file.parity["agreement"]["sqnr_db"] > 45
    assert all(layer["tensor"] for layer in file.parity["layers"])
    # The padding of the shortcut's channels is a shifted zero.
    assert any(layer.type == "Padding" and float(layer.params[5]) > 0 for layer in read_param(file.path))


class Gated(nn.Module):
    """A tensor after a ReLU that a sigmoid reads besides the next layer: it can't be shifted."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.next = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, networks.CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(x))
        return self.head((self.next(x) * torch.sigmoid(x)).mean((2, 3)))


def test_a_tensor_that_something_else_reads_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(networks.NETWORKS, "gated", Gated)
    bundle = bundle_of("gated", "int8")
    assert not shifted(NcnnExporter().lower(bundle, "int8").module)
    (file,) = export(bundle, "ncnn", output=tmp_path)
    assert file.parity["agreement"]["sqnr_db"] > 45
