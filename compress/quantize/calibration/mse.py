"""MSE: the range whose grid loses least, clipping and rounding weighed against each other."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch

from edgekit.compress.quantize.calibration.histogram import StreamingHistogram
from edgekit.compress.quantize.calibration.observer import Observer
from edgekit.compress.quantize.scheme import ACTIVATION_MAX, ACTIVATION_MIN, affine_parameters

# Shrunk in steps of 1 %: finer changes the error by less than calibrating on other images does.
_SHARES = np.arange(1.0, 0.29, -0.01)


class MeanSquaredError(Observer):
    """Shrinks both ends of the min-max range, one after the other, and keeps what has the least squared error."""

    name: ClassVar[str] = "mse"
    source: ClassVar[str] = "Choukroun et al., ICCV Workshops 2019, equation 2; Banner et al., NeurIPS 2019, section 3"

    def __init__(self) -> None:
        self._histogram = StreamingHistogram()

    def update(self, values: torch.Tensor, low: float, high: float) -> None:
        self._histogram.update(values, low, high)

    def range(self) -> tuple[float, float]:
        low, high = self._histogram.low, self._histogram.high
        # One end at a time: the error of each is nearly independent of the other's clipping.
        high = min((high * share for share in _SHARES), key=lambda end: self.error(low, end)) if high > 0 else high
        low = min((low * share for share in _SHARES), key=lambda end: self.error(end, high)) if low < 0 else low
        return low, high

    def error(self, low: float, high: float) -> float:
        """Mean squared error of the histogram on the grid of this range."""
        grid = affine_parameters(low, high)
        x = self._histogram.centres
        q = np.clip(np.round(x / grid.scale) + grid.zero_point, ACTIVATION_MIN, ACTIVATION_MAX)
        error = (x - (q - grid.zero_point) * grid.scale) ** 2
        counts = self._histogram.counts
        return float((error * counts).sum() / max(int(counts.sum()), 1))
