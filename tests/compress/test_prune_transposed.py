"""Transposed convolutions in groups, held against the whole network in which nothing reads the channels that were cut."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgekit.compress.prune.flow import analyse
from edgekit.compress.prune.rules import RULES
from edgekit.compress.prune.surgery import cut
from edgekit.program import aten, export_program, trainable


@pytest.mark.parametrize(
    ("outputs", "groups", "before", "after"),
    [
        (8, 8, [1, 4], [1, 4]),
        (16, 8, [1, 4], [2, 3, 8, 9]),
        (12, 4, [0, 2, 4, 6], [1, 4, 7, 10]),
        (12, 4, [], [0, 3, 6, 9]),
    ],
)
def test_groups_keep_as_many_channels_each(outputs: int, groups: int, before: list[int], after: list[int]) -> None:
    """Depthwise, each channel twice, and two channels of each of four groups become three: what goes on either side."""

    class Up(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 3, padding=1)
            self.up = nn.ConvTranspose2d(8, outputs, 3, 2, 1, 1, groups=groups)
            self.head = nn.Conv2d(outputs, 5, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(torch.sigmoid(self.up(torch.relu(self.stem(x)))))

    torch.manual_seed(0)
    program = export_program(Up(), (3, 6, 6))
    whole, pruned = trainable(program).double(), trainable(program).double()
    flow = analyse(pruned, RULES)
    assert not flow.barriers
    made = {s.parameter: flow.roots(s.ids) for s in flow.slots if s.role == "vector"}
    removed = {int(made["stem.bias"][c]) for c in before} | {int(made["up.bias"][c]) for c in after}
    with torch.no_grad():
        whole.up.weight[before] = 0  # nothing reads them
        whole.head.weight[:, after] = 0
    cut(flow, removed)
    assert pruned.stem.weight.shape[0] == 8 - len(before)
    assert pruned.head.weight.shape[1] == outputs - len(after)
    (node,) = [n for n in pruned.graph.nodes if n.target is aten.conv_transpose2d.input]
    assert node.args[6] == (groups - len(before) if groups == 8 else groups)
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(pruned(x), whole(x), rtol=1e-12, atol=1e-12)


def test_depthwise_on_channels_that_stay_stays() -> None:
    network = nn.Sequential(nn.ConvTranspose2d(3, 6, 2, 2, groups=3), nn.Conv2d(6, 4, 1)).eval()
    flow = analyse(trainable(export_program(network, (3, 6, 6))), RULES)
    assert {s.parameter for s in flow.slots} == {"1.weight", "1.bias"}
