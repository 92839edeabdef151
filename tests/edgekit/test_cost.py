"""Counting; the totals of whole networks against published figures stand in test_zoo.py."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgekit.cost import cost_of
from edgekit.program import export_program
from edgekit.testing import networks


def test_memory_access_of_a_pointwise_convolution_is_that_of_the_paper() -> None:
    # Ma et al., ECCV 2018, equation 1: MAC = hw (c1 + c2) + c1 c2.
    module = nn.Conv2d(6, 10, 1, bias=False)
    found = cost_of(export_program(module, (6, 5, 7)))
    assert found.memory_access == 5 * 7 * (6 + 10) + 6 * 10


@pytest.mark.parametrize(("layer", "gates"), [(nn.LSTM, 4), (nn.GRU, 3)])
def test_recurrent_layers_count_every_weight_in_every_step(layer: type[nn.Module], gates: int) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = layer(5, 6, num_layers=2, bidirectional=True, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layers(x)[0]

    found = cost_of(export_program(Two(), (9, 5)))
    # The second layer reads both directions of the first.
    assert found.macs == 9 * 2 * gates * 6 * ((5 + 6) + (12 + 6))
    assert found.parameters == sum(parameter.numel() for parameter in Two().parameters())
    assert found.uncounted == ()


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
