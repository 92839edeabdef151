"""Percentile: the rarest values are clipped."""

from __future__ import annotations

from typing import ClassVar

import torch

from edgekit.compress.quantize.calibration.histogram import StreamingHistogram
from edgekit.compress.quantize.calibration.observer import Observer

# 99.99 % in the survey; what is clipped is split between both ends.
KEPT = 0.9999


class Percentile(Observer):
    """The range that holds 99.99 % of the values, half of the rest clipped at each end."""

    name: ClassVar[str] = "percentile"
    source: ClassVar[str] = "Wu et al., arXiv:2004.09602, section 5.1"

    def __init__(self) -> None:
        self._histogram = StreamingHistogram()

    def update(self, values: torch.Tensor, low: float, high: float) -> None:
        self._histogram.update(values, low, high)

    def range(self) -> tuple[float, float]:
        clipped = (1 - KEPT) / 2
        # A ReLU's zeros are exact at any scale: its lower end is 0 whatever the share.
        low, high = self._histogram.quantile(clipped), self._histogram.quantile(1 - clipped)
        return min(low, 0.0), max(high, 0.0)
