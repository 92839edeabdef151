"""Graphs that a converter stumbled over once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgekit.bundle import Bundle
from edgekit.compress.rewrite import average_inside
from edgekit.cost import cost_of
from edgekit.export.exporter import EXPORTERS
from edgekit.export.lowering import pack_bits
from edgekit.export.run import export
from edgekit.program import export_program, trainable
from edgekit.testing import networks
from edgekit.testing.exporters import bundle_of


class PaddedBranch(nn.Module):
    """A tensor read by a padding on one branch and by a convolution on the other, as Keras' residual networks have it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.long, self.short = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 12, 3, 2), nn.Conv2d(8, 12, 1, 2)
        self.head = nn.Linear(12, networks.CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(self.long(F.pad(x, (0, 1, 0, 1))) + self.short(x))
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("precision", ["float32", "int8"])
@pytest.mark.parametrize("name", EXPORTERS)
def test_a_tensor_that_is_padded_on_one_branch_alone(
    name: str, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(networks.NETWORKS, "padded-branch", PaddedBranch)
    (file,) = export(bundle_of("padded-branch", precision), name, output=tmp_path)
    assert file.parity["agreement"]["top1_percent"] > 95


def test_two_bit_weights_take_a_quarter_of_the_bytes_in_onnx_and_stay_integer(tmp_path: Path) -> None:
    (eight,) = export(bundle_of("residual", "int8"), "onnx", output=tmp_path / "8")
    (two,) = export(bundle_of("residual", "int8", weight_bits=2), "onnx", output=tmp_path / "2")
    weights = sum(layer.parameters for layer in cost_of(bundle_of("residual").module()).layers if layer.macs)
    # A cast node for each layer is what it costs.
    assert eight.parity["size_bytes"] - two.parity["size_bytes"] > 0.7 * weights - 1500
    assert two.parity["int8_macs_share"] == 1


class Wide(nn.Module):
    """A linear layer whose columns fill whole blocks, and one whose do not."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2)
        self.hidden, self.head = nn.Linear(64, 40), nn.Linear(40, networks.CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.adaptive_avg_pool2d(F.relu(self.stem(x)), 2).flatten(1)
        return self.head(F.relu(self.hidden(x)))


def test_four_bit_linear_layers_with_float_inputs_become_matmul_nbits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(networks.NETWORKS, "wide", Wide)
    bundle = bundle_of("wide", "int8", weight_bits=4, activation_bits=32)
    (file,) = export(bundle, "onnx", output=tmp_path)
    model = onnx.load(file.path)
    assert [n.op_type for n in model.graph.node].count("MatMulNBits") == 1
    assert not [n for n in model.graph.node if n.op_type in ("DequantizeLinear", "QuantizeLinear")]
    assert file.parity["agreement"]["sqnr_db"] > 70
    assert file.parity["int8_macs_share"] == 0


@pytest.mark.parametrize(("bits", "kind"), [(4, onnx.TensorProto.INT4), (2, onnx.TensorProto.INT2)])
def test_packing_is_read_back_by_onnx(bits: int, kind: int) -> None:
    values = np.random.default_rng(0).integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (5, 7)).astype(np.int8)
    packed = pack_bits(values, bits)
    assert packed.nbytes == -(-values.size * bits // 8)
    tensor = onnx.helper.make_tensor("w", kind, values.shape, packed.tobytes(), raw=True)
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(tensor).astype(np.int8), values)


def test_averages_that_round_up_count_what_is_inside_in_ncnn(tmp_path: Path) -> None:
    class Averages(nn.Module):
        """The first one's last window covers a column beyond the map; the second pads, and counts what it pads."""

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3, padding=1)
            self.head = nn.Linear(8 * 5 * 5, networks.CLASSES)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = F.avg_pool2d(self.conv(x), 3, 2, ceil_mode=True)
            return self.head(F.avg_pool2d(x, 2, 2, 1).flatten(1))

    with torch.random.fork_rng():
        torch.manual_seed(0)
        program = export_program(Averages(), networks.INPUT_SHAPE)
    module, x = trainable(program), networks.images(8)
    expected = module(x)
    assert average_inside(module) == 1
    torch.testing.assert_close(module(x), expected, rtol=0, atol=0)
    bundle = Bundle(program, networks.INPUT_SHAPE).with_samples(x.numpy(), np.zeros(len(x), np.int64))
    (file,) = export(bundle, "ncnn", output=tmp_path)
    assert file.parity["agreement"]["max_abs"] < 1e-5
