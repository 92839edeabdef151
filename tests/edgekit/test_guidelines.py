"""The four rules of ShuffleNet V2 against figures worked out by hand from the paper's equations."""

from __future__ import annotations

import json
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgekit.compress.quantize.rules import FUSES_ACTIVATION, RULES, Role
from edgekit.guidelines import LIMITS, Guide, guide_of
from edgekit.program import export_program, trainable
from edgekit.testing import networks
from edgekit.testing.exporters import bundle_of


def _guide(network: nn.Module, *shape: int) -> Guide:
    return guide_of(trainable(export_program(network.eval(), shape)))


@pytest.mark.parametrize(("c1", "c2"), [(128, 128), (24, 144), (52, 624)])
def test_g1_is_equation_2(c1: int, c2: int) -> None:
    """MAC = hw(c1 + c2) + c1 c2, and the bound is 2 sqrt(hw B) + B / hw with B = hw c1 c2."""
    network = nn.Sequential(nn.ReLU(), nn.Conv2d(c1, c2, 1, bias=False))
    guide = _guide(network, c1, 56, 56)
    layer = guide.layers[1]
    hw, b = 56 * 56, 56 * 56 * c1 * c2
    assert layer.memory_access == hw * (c1 + c2) + c1 * c2
    assert layer.bound == pytest.approx(2 * math.sqrt(hw * b) + b / hw)
    assert layer.over_bound == pytest.approx((hw * (c1 + c2) + c1 * c2) / (2 * math.sqrt(hw * b) + b / hw))
    if c1 == c2:
        assert layer.over_bound == pytest.approx(1.0)
    assert ("G1" in layer.flags) == (c1 != c2)
    # The first operator reads 1 and writes 1; the convolution is one share of all that is moved.
    assert guide.memory_access == 2 * hw * c1 + layer.memory_access


def test_a_layer_on_the_image_is_not_told_to_widen_it() -> None:
    layer = _guide(nn.Conv2d(3, 64, 3, padding=1), 3, 32, 32).layers[0]
    assert layer.over_bound is not None
    assert layer.over_bound > LIMITS["G1"]
    assert layer.flags == ()


@pytest.mark.parametrize("groups", [1, 2, 4, 8])
def test_g2_is_equation_3(groups: int) -> None:
    """MAC = hw c1 + B g / c1 + B / hw with B = hw c1 c2 / g, over the same with g = 1."""
    c1, c2, hw = 40, 80, 28 * 28
    layer = _guide(nn.Conv2d(c1, c2, 1, groups=groups), c1, 28, 28).layers[0]
    b = hw * c1 * c2 // groups
    access = hw * c1 + b * groups // c1 + b // hw
    assert layer.memory_access == access
    if groups == 1:
        assert layer.over_dense is None
    else:
        assert layer.over_dense == pytest.approx(access / (hw * c1 + b / c1 + b / hw))
        assert ("G2" in layer.flags) == (layer.over_dense >= 1.25)
    assert layer.groups == groups


def test_g3_counts_what_stands_side_by_side() -> None:
    guide = guide_of(bundle_of("inception").module())
    beside = {layer.path: layer.parallel for layer in guide.layers if layer.parallel}
    # 1×1, two reductions and the pooling; then 3×3, 5×5 and the projection.
    assert [beside[name] for name in ("stem", "one", "reduce3", "reduce5", "three", "five", "pooled", "head")] == [
        1, 4, 4, 4, 3, 3, 3, 1,
    ]  # fmt: skip
    assert guide.widest == 4
    assert {layer.path.split()[0] for layer in guide.layers if "G3" in layer.flags} == {
        "one", "reduce3", "reduce5", "three", "five", "pooled", "max_pool2d",
    }  # fmt: skip


def test_g4_is_the_share_of_what_no_runtime_fuses() -> None:
    """An inverted residual by hand: depthwise, and one addition; batch norms and ReLU6 are inside their layers."""
    guide = guide_of(bundle_of("depthwise").module())
    hw = 8 * 8
    moved = {
        "stem": 3 * 16 * 16 + 8 * hw + 8 * 27,
        "expand": hw * (8 + 24) + 8 * 24,
        "depthwise": hw * (24 + 24) + 24 * 9,
        "project": hw * (24 + 8) + 24 * 8,
        "add": 3 * hw * 8,
        "pool": hw * 8 + 8,
        "head": 8 + 7 + 56,
    }
    assert guide.memory_access == sum(moved.values())
    shares = {layer.path.split()[0]: layer.element_wise_share for layer in guide.layers if layer.element_wise_share}
    assert shares == pytest.approx(
        {"depthwise": moved["depthwise"] / sum(moved.values()), "add": moved["add"] / sum(moved.values())}
    )
    assert guide.element_wise_share == pytest.approx((moved["depthwise"] + moved["add"]) / sum(moved.values()))
    assert guide.depthwise_share == pytest.approx(moved["depthwise"] / sum(moved.values()))
    assert all("G4" in layer.flags for layer in guide.layers if layer.element_wise_share)


def test_an_activation_that_no_layer_takes_in_is_counted() -> None:
    class Behind(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.conv(x)
            return F.silu(F.relu(x) + x)

    guide = _guide(Behind(), 4, 8, 8)
    assert [layer.op for layer in guide.layers if layer.element_wise_share] == [
        "relu.default", "add.Tensor", "silu.default",
    ]  # fmt: skip


def test_what_counts_as_fused_is_what_the_quantizer_fuses() -> None:
    from edgekit import guidelines

    assert {op for op, role in RULES.items() if role is Role.FUSED} == set(guidelines._ACTIVATIONS)
    assert set(guidelines._FUSE_AN_ACTIVATION) >= FUSES_ACTIVATION


@pytest.mark.parametrize("name", networks.FEATURES)
def test_every_network_has_a_guide_of_json_values(name: str) -> None:
    guide = guide_of(bundle_of(name).module())
    json.dumps(guide.to_dict(), allow_nan=False)
    assert all(layer.over_bound is None or layer.over_bound >= 1 for layer in guide.layers)
    assert 0 <= guide.element_wise_share < 1


def test_a_quantized_network_has_the_same_figures() -> None:
    floats, integers = (guide_of(bundle_of("inception", p).module()) for p in ("float32", "int8"))
    assert integers.memory_access == floats.memory_access
    assert [layer.over_bound for layer in integers.layers] == [layer.over_bound for layer in floats.layers]
