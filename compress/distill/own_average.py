"""A network as its own teacher: the moving average of its weights while it trains.

Tarvainen & Valpola, "Mean teachers are better role models", NeurIPS 2017, section 2. Of the forms of self-distillation it
is the one that needs no second training; a network that learns from an earlier generation of itself (Furlanello et al.,
"Born-Again Neural Networks", ICML 2018) is the teacher ``before``, or that bundle. As in the paper's appendix B.1 the
weight of what it says rises slowly from 0: at once, a network with random weights learns nothing but its own first answers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.fx import GraphModule

from edgekit.compress.distill.method import Seen
from edgekit.compress.distill.taps import Look
from edgekit.program import duplicate, set_training

# Its highest weight for what was; less at first, so that the start is forgotten: min(1 − 1 / (step + 1), 0.999).
_DECAY = 0.999
# The share of the training in which its weight rises, by exp(-5 (1 - t)^2) with t from 0 to 1: 40 000 of 150 000 steps.
_RISE = 0.27


class OwnAverage(torch.nn.Module):
    """The average of a network's parameters and of batch norm's statistics, in evaluation.

    Its state travels in checkpoints; the optimizer has nothing to do with it.

    Args:
        module: The network that will be trained.
        places: Names of the nodes that are looked into.
    """

    def __init__(self, module: GraphModule, places: Sequence[str]) -> None:
        super().__init__()
        self.average = set_training(duplicate(module), False)
        for parameter in self.average.parameters():
            parameter.requires_grad_(False)
        self.steps: torch.Tensor
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self._look = Look(places)
        self._rising = 0.0

    def begin(self, steps: int) -> None:
        """Told how many steps the training has."""
        self._rising = _RISE * steps

    def trusted(self) -> float:
        """The factor, 0 to 1, of its weight at this step."""
        t = min(int(self.steps) / self._rising, 1.0) if self._rising else 1.0
        return math.exp(-5.0 * (1.0 - t) ** 2)

    def follow(self, module: torch.nn.Module) -> None:
        """Takes in the weights that the network has now."""
        decay = min(1 - 1 / (int(self.steps) + 1), _DECAY)
        self.steps += 1
        now = module.state_dict()
        with torch.no_grad():
            for name, kept in self.average.state_dict().items():
                if kept.is_floating_point():
                    kept.lerp_(now[name], 1 - decay)
                else:
                    kept.copy_(now[name])

    def forward(self, x: torch.Tensor) -> Seen:
        with torch.no_grad():
            return self._look(self.average, x)
