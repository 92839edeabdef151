"""Moving average: the range of a typical batch, so that one odd image does not set it."""

from __future__ import annotations

from typing import ClassVar

import torch

from edgekit.compress.quantize.calibration.observer import Observer

# The paper smooths over thousands of training steps; calibration sees tens of batches.
_WEIGHT = 0.1


class MovingAverage(Observer):
    """Exponential moving average of each batch's minimum and maximum, begun at the first batch's."""

    name: ClassVar[str] = "moving-average"
    source: ClassVar[str] = "Jacob et al., CVPR 2018, section 3.1 (exponential moving averages of activation ranges)"

    def __init__(self) -> None:
        self._seen: tuple[float, float] | None = None

    def update(self, values: torch.Tensor, low: float, high: float) -> None:
        if self._seen is None:
            self._seen = low, high
        else:
            self._seen = (
                self._seen[0] + _WEIGHT * (low - self._seen[0]),
                self._seen[1] + _WEIGHT * (high - self._seen[1]),
            )

    def range(self) -> tuple[float, float]:
        low, high = self._seen or (0.0, 0.0)
        return min(low, 0.0), max(high, 0.0)
