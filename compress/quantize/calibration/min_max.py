"""Min-max: everything that was seen is represented."""

from __future__ import annotations

from typing import ClassVar

import torch

from edgekit.compress.quantize.calibration.observer import Observer


class MinMax(Observer):
    """The smallest and the largest value over all images: two numbers."""

    name: ClassVar[str] = "min-max"
    source: ClassVar[str] = "Jacob et al., CVPR 2018, section 3"

    def __init__(self) -> None:
        self._low, self._high = 0.0, 0.0

    def update(self, values: torch.Tensor, low: float, high: float) -> None:
        self._low, self._high = min(self._low, low), max(self._high, high)

    def range(self) -> tuple[float, float]:
        return self._low, self._high
