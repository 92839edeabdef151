"""Affine quantization: q = clamp(round(x / scale) + zero_point), x' = (q - zero_point) scale.

Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", CVPR 2018,
equation 1. Weights are symmetric per output channel in [-127, 127], activations asymmetric per tensor in [-128, 127]:
the form that TFLite specifies and that ONNX Runtime and XNNPACK run fastest.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

ACTIVATION_MIN, ACTIVATION_MAX = -128, 127
WEIGHT_MAX = 127
# Below this a scale can't be inverted in float32 without overflow.
_SMALLEST_SCALE = 1e-12


@dataclass(frozen=True)
class AffineParameters:
    """Scale and zero point of one activation tensor, for int8."""

    scale: float
    zero_point: int


def affine_parameters(low: float, high: float) -> AffineParameters:
    """Parameters for values in [low, high]; the range is widened to hold 0, which must be exact (it is the padding)."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = max((high - low) / (ACTIVATION_MAX - ACTIVATION_MIN), _SMALLEST_SCALE)
    scale = float(torch.tensor(scale, dtype=torch.float32))  # runtimes hold it in float32
    zero_point = round(ACTIVATION_MIN - low / scale)
    return AffineParameters(scale, int(min(max(zero_point, ACTIVATION_MIN), ACTIVATION_MAX)))


def weight_scales(weight: torch.Tensor) -> torch.Tensor:
    """Symmetric scale of each output channel (dimension 0); float32, shape (out,).

    A channel of zeros takes the largest scale of the tensor: any would do for it, and a tiny one upsets the fixed-point
    multipliers of runtimes.
    """
    largest = weight.detach().abs().flatten(1).amax(1).to(torch.float32)
    scales = largest / WEIGHT_MAX
    scales[scales < _SMALLEST_SCALE] = max(float(scales.max()), 1.0 / WEIGHT_MAX if float(scales.max()) == 0 else 0.0)
    return scales


def quantize_weight(weight: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Rounds a weight to int8 with the scale of each output channel; halves go to even, as in every runtime."""
    spread = scales.view(-1, *[1] * (weight.dim() - 1))
    return torch.clamp(torch.round(weight.detach() / spread), -WEIGHT_MAX, WEIGHT_MAX).to(torch.int8)
