"""Recurrent keyword spotters: Zhang et al., "Hello Edge: Keyword Spotting on Microcontrollers", arXiv:1711.07128.

The small LSTM and the small GRU of table 2: ten cepstral coefficients of each 40 ms of one second of sound, every 20 ms for the
LSTM (49 steps of 118 cells), every 40 ms for the GRU (25 steps of 154 cells), one linear layer on the last state. torch has two
biases for each gate where one is enough, so there are 4 or 3 numbers a cell more than in the paper.
"""

from __future__ import annotations

import torch
from torch import nn

from edgekit.zoo.initialization import he_normal


class KeywordRnn(nn.Module):
    """One recurrent layer over (time, coefficients) and one linear layer on its last output.

    Args:
        kind: ``lstm`` or ``gru``.
        cells: Of the recurrent layer.
        coefficients: Of each time step.
        classes: Outputs: ten words, an unknown one, and silence.
    """

    def __init__(self, kind: str, cells: int, *, coefficients: int = 10, classes: int = 12) -> None:
        super().__init__()
        layer = nn.LSTM if kind == "lstm" else nn.GRU
        self.recurrent = layer(coefficients, cells, batch_first=True)
        self.classifier = nn.Linear(cells, classes)
        he_normal(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, _ = self.recurrent(x)
        return self.classifier(y[:, -1])
