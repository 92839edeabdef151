"""Graphs that a converter stumbled over once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from edgekit.export.exporter import EXPORTERS
from edgekit.export.run import export
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
