"""How networks without weights begin."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

# Enough for the statistics of a batch norm, which are over space too.
_INPUTS = 2


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


def settle_statistics(network: nn.Module, input_shape: Sequence[int]) -> None:
    """Gives batch norms the statistics of two smooth random inputs, in place, by torch's generator.

    A batch norm that has seen nothing does nothing in evaluation: sums of residual blocks then grow by orders of magnitude.

    Args:
        network: Left in evaluation.
        input_shape: Shape of one image without the batch.
    """
    network.eval()
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    coarse = torch.randn(_INPUTS, input_shape[0], 7, 7)
    x = F.interpolate(coarse, size=tuple(input_shape[1:]), mode="bilinear")
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    with torch.no_grad():
        network(x)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.eval()
        norm.momentum = momentum
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked.zero_()
