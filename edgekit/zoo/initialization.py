"""How networks without weights begin."""

from __future__ import annotations

from torch import nn


def he_normal(network: nn.Module) -> None:
    """Draws each weight from N(0, 2 / inputs) and sets biases to zero, in place, by torch's generator.

    A signal keeps its size through layers followed by a ReLU (He et al., "Delving Deep into Rectifiers", ICCV 2015,
    equation 10); from torch's own beginning it dies out in a deep network, and every input gives the same outputs.
    """
    for module in network.modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
