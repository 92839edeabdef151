"""MACs and parameters against published totals and an independent count by hooks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgekit import zoo
from edgekit.cost import cost_of
from edgekit.program import export_program
from edgekit.testing import networks

# Parameters: He et al., CVPR 2016, table 6 (0.27 M and 0.85 M); Sandler et al., CVPR 2018, table 4 (3.4 M, 300 M MACs);
# Howard et al., arXiv:1704.04861, table 8 (4.2 M, 569 M MACs); Iandola et al. (1.24 M, 0.35 G MACs for version 1.1).
PUBLISHED = {
    "resnet20-cifar": (0.27e6, 40.6e6),
    "resnet56-cifar": (0.85e6, 125.5e6),
    "mobilenet-v1": (4.2e6, 569e6),
    "mobilenet-v2": (3.5e6, 300e6),
    "squeezenet-1.1": (1.24e6, 0.35e9),
}
# Counted once and kept, so that a change of the convention is noticed.
EXACT = {
    "resnet20-cifar": (269_722, 40_551_040),
    "resnet56-cifar": (853_018, 125_485_696),
    "mobilenet-v1": (4_231_976, 568_740_352),
    "mobilenet-v2": (3_504_872, 300_774_272),
    "squeezenet-1.1": (1_235_496, 349_151_936),
    "digits-cnn": (67_146, 2_097_280),
}


def _counted_by_hooks(network: nn.Module, x: torch.Tensor) -> int:
    total = 0

    def convolution(module: nn.Conv2d, _: object, y: torch.Tensor) -> None:
        nonlocal total
        total += y[0].numel() * module.in_channels // module.groups * module.kernel_size[0] * module.kernel_size[1]

    def linear(module: nn.Linear, _: object, y: torch.Tensor) -> None:
        nonlocal total
        total += y[0].numel() * module.in_features

    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(convolution)
        elif isinstance(module, nn.Linear):
            module.register_forward_hook(linear)
    with torch.no_grad():
        network(x)
    return total


@pytest.mark.parametrize("name", EXACT)
def test_totals(name: str) -> None:
    network, entry = zoo.build(name)
    found = cost_of(export_program(network, entry.input_shape))
    assert (found.parameters, found.macs) == EXACT[name]
    assert found.parameters == sum(p.numel() for p in network.parameters())
    assert found.macs == _counted_by_hooks(network, torch.zeros(1, *entry.input_shape))
    assert found.macs == sum(layer.macs for layer in found.layers)
    assert found.uncounted == ()
    if name in PUBLISHED:
        parameters, macs = PUBLISHED[name]
        assert found.parameters == pytest.approx(parameters, rel=0.035)
        assert found.macs == pytest.approx(macs, rel=0.01)


def test_memory_access_of_a_pointwise_convolution_is_that_of_the_paper() -> None:
    # Ma et al., ECCV 2018, equation 1: MAC = hw (c1 + c2) + c1 c2.
    module = nn.Conv2d(6, 10, 1, bias=False)
    found = cost_of(export_program(module, (6, 5, 7)))
    assert found.memory_access == 5 * 7 * (6 + 10) + 6 * 10


def test_an_operator_without_a_rule_is_named() -> None:
    class Sorting(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.erfinv(x)

    assert "erfinv" in cost_of(export_program(Sorting(), (4,))).uncounted[0]


@pytest.mark.parametrize("name", networks.NETWORKS)
def test_bytes_are_what_the_weights_take(name: str) -> None:
    network = networks.make(name)
    floats = list(network.parameters()) + [b for b in network.buffers() if b.dtype == torch.float32]
    assert cost_of(export_program(network, networks.INPUT_SHAPE)).bytes == sum(t.nbytes for t in floats)
