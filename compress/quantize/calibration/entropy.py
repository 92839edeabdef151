"""Entropy: the range whose grid keeps the distribution, by Kullback-Leibler divergence."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch

from edgekit.compress.quantize.calibration.histogram import BINS, StreamingHistogram
from edgekit.compress.quantize.calibration.observer import Observer

# Levels for magnitudes: int8 has 127 for a signed tensor, 255 for one that is never negative.
_SIGNED, _UNSIGNED = 128, 256
_STEP = 16


class Entropy(Observer):
    """Clips magnitudes at the threshold whose quantized histogram diverges least from the clipped one."""

    name: ClassVar[str] = "entropy"
    source: ClassVar[str] = (
        "Migacz, '8-bit Inference with TensorRT', GTC 2017, pages 33-38; ncnn's quantize tool does so"
    )

    def __init__(self) -> None:
        self._histogram = StreamingHistogram()

    def update(self, values: torch.Tensor, low: float, high: float) -> None:
        self._histogram.update(values, low, high)

    def range(self) -> tuple[float, float]:
        found = self._histogram
        signed = found.low < 0
        magnitudes = found.counts[BINS:] + (found.counts[:BINS][::-1] if signed else 0)
        threshold = _threshold(magnitudes.astype(np.float64), _SIGNED if signed else _UNSIGNED) * found.width
        return max(found.low, -threshold), min(found.high, threshold)


def _threshold(counts: np.ndarray, levels: int) -> int:
    """How many bins to keep: the number whose divergence is least."""
    counts = counts.copy()
    # What is exactly representable tells nothing of the threshold; a ReLU's zeros would outweigh all else.
    counts[0] = counts[1]
    used = int(np.flatnonzero(counts)[-1]) + 1 if counts.any() else 0
    if used <= levels:
        return max(used, 1)
    # A candidate ends at a bin that holds something, for the clipped values are counted in its last one.
    ends = np.flatnonzero(counts) + 1
    wanted = [*range(levels, used, _STEP), used]
    candidates = sorted({int(ends[np.searchsorted(ends, end)]) for end in wanted})
    return min(candidates, key=lambda kept: _divergence(counts, kept, levels))


def _divergence(counts: np.ndarray, kept: int, levels: int) -> float:
    """KL divergence of the clipped histogram from its quantized form; infinite where the latter is empty."""
    clipped = counts[:kept].copy()
    clipped[-1] += counts[kept:].sum()
    level = np.minimum(np.arange(kept) * levels // kept, levels - 1)
    present = counts[:kept] > 0
    sums = np.bincount(level, counts[:kept], levels)
    filled = np.bincount(level, present, levels)
    quantized = np.where(present, sums[level] / np.maximum(filled[level], 1), 0.0)
    p, q = clipped / clipped.sum(), quantized / max(quantized.sum(), 1e-300)
    chosen = p > 0
    if (q[chosen] == 0).any():
        return float("inf")
    return float((p[chosen] * np.log(p[chosen] / q[chosen])).sum())
