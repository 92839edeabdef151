"""A histogram of a stream, in memory that does not grow with it."""

from __future__ import annotations

import numpy as np
import torch

BINS = 2048


class StreamingHistogram:
    """Counts in ``2 × BINS`` bins of equal width around 0, whose width doubles when a value lies outside.

    Doubling merges neighbouring bins exactly, so a count is never moved to a wrong place: the histogram is the one that
    the final width would have given from the start. 0 is always a boundary.

    Example:
        >>> histogram = StreamingHistogram()
        >>> histogram.update(torch.tensor([-1.0, 0.5, 3.0]), -1.0, 3.0)
        >>> int(histogram.counts.sum())
        3
    """

    def __init__(self) -> None:
        self.counts = np.zeros(2 * BINS, np.int64)
        self.width = 0.0
        self.low, self.high = 0.0, 0.0

    def update(self, values: torch.Tensor, low: float, high: float) -> None:
        """Adds values, float32, any shape, finite, of which the smallest and the largest are given."""
        self.low, self.high = min(self.low, low), max(self.high, high)
        largest = max(-low, high)
        if self.width == 0.0:
            if largest == 0.0:
                self.counts[BINS] += values.numel()
                return
            # A power of two, so that two streams in another order end in the same bins.
            self.width = float(2.0 ** np.ceil(np.log2(largest / BINS)))
        while largest > self.width * BINS:
            self._double()
        # Exact in float32, for the width is a power of two; torch.histc would put values near a boundary on its other side.
        bins = torch.floor(values.detach().reshape(-1) / self.width).to(torch.int32).add_(BINS)
        bins.clamp_(0, 2 * BINS - 1)
        self.counts += torch.bincount(bins, minlength=2 * BINS).numpy()

    def _double(self) -> None:
        merged = self.counts.reshape(-1, 2).sum(1)
        self.counts = np.zeros_like(self.counts)
        self.counts[BINS // 2 : BINS // 2 + BINS] = merged
        self.width *= 2

    @property
    def edges(self) -> np.ndarray:
        """Boundaries of the bins, float64, shape (2 BINS + 1,)."""
        return np.arange(-BINS, BINS + 1) * self.width

    @property
    def centres(self) -> np.ndarray:
        """Middles of the bins, float64, shape (2 BINS,)."""
        return (np.arange(-BINS, BINS) + 0.5) * self.width

    def quantile(self, share: float) -> float:
        """The value below which this share of the counts lies, interpolated within its bin, kept within what was seen."""
        total = self.counts.sum()
        if total == 0 or self.width == 0.0:
            return 0.0
        cumulated = np.concatenate([[0], np.cumsum(self.counts)]) / total
        place = float(np.interp(share, cumulated, self.edges))
        return min(max(place, self.low), self.high)
