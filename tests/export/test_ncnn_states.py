"""Initial states of recurrent layers in ncnn files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import edgekit
from edgekit.bundle import Bundle
from edgekit.export.ncnn_model import read_param
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

    torch.manual_seed(0)
    x = torch.randn(4, 5, 6).numpy()
    bundle = Bundle(export_program(Both(), (5, 6)), (5, 6)).with_samples(x, np.zeros(4, np.int64)).save(tmp_path / "b")
    (file,) = edgekit.export(bundle, ["ncnn"])  # proved there
    states = [found for found in read_param(file.path) if found.type == "MemoryData"]
    assert [(s.integer(0), s.integer(1), s.integer(2)) for s in states] == [(3, 2, 0)] * len(states)
    assert states
