"""Affine quantization: q = clamp(round(x / scale) + zero_point), x' = (q - zero_point) scale.

Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", CVPR 2018,
equation 1. Weights are symmetric per output channel in [-(2^(b-1) - 1), 2^(b-1) - 1], activations asymmetric per tensor
in [-128, 127]: the form that TFLite specifies and that ONNX Runtime and XNNPACK run fastest.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

ACTIVATION_MIN, ACTIVATION_MAX = -128, 127
_INT16_MAX = 32767
# Activations of so many bits are float32: weights alone are integers.
FLOAT_BITS = 32
WEIGHT_BITS = (2, 3, 4, 5, 6, 7, 8)
# Below this a scale can't be inverted in float32 without overflow.
_SMALLEST_SCALE = 1e-12
# With fewer bits than this, clipping a channel's largest weights pays: the step is coarse against most of them.
_CLIPPED_BELOW = 8
_CLIPS = torch.arange(1.0, 0.29, -0.01, dtype=torch.float64)


@dataclass(frozen=True)
class AffineParameters:
    """Scale and zero point of one activation tensor, for int8, or for int16 where the zero point is 0."""

    scale: float
    zero_point: int
    bits: int = 8

    @property
    def bounds(self) -> tuple[float, int, int, int, torch.dtype]:
        """The arguments of a program's quantize and dequantize operators behind the tensor."""
        top = 2 ** (self.bits - 1)
        return self.scale, self.zero_point, -top, top - 1, torch.int8 if self.bits == 8 else torch.int16


def affine_parameters(low: float, high: float, *, symmetric: bool = False, bits: int = 8) -> AffineParameters:
    """Parameters for values in [low, high]; the range is widened to hold 0, which must be exact (it is the padding).

    Args:
        low: Smallest value to represent.
        high: Largest value to represent.
        symmetric: Zero point 0, the larger magnitude at 127.
        bits: 8, or 16: symmetric then, as TFLite's specification has it.
    """
    if bits == 16:
        scale = max(-low, high, _SMALLEST_SCALE * _INT16_MAX) / _INT16_MAX
        return AffineParameters(float(torch.tensor(scale, dtype=torch.float32)), 0, bits)
    low, high = min(low, 0.0), max(high, 0.0)
    if symmetric:
        low, high = -max(-low, high) * 128 / 127, max(-low, high)
    scale = max((high - low) / (ACTIVATION_MAX - ACTIVATION_MIN), _SMALLEST_SCALE)
    scale = float(torch.tensor(scale, dtype=torch.float32))  # runtimes hold it in float32
    zero_point = 0 if symmetric else round(ACTIVATION_MIN - low / scale)
    return AffineParameters(scale, int(min(max(zero_point, ACTIVATION_MIN), ACTIVATION_MAX)))


def weight_max(bits: int) -> int:
    """The largest integer of a symmetric weight: 127 for 8 bits, 7 for 4, 1 for 2."""
    return int(2 ** (bits - 1) - 1)


def weight_scales(weight: torch.Tensor, bits: int = 8, *, per_channel: bool = True) -> torch.Tensor:
    """Symmetric scale of each output channel (dimension 0); float32, shape (out,).

    With 8 bits nothing is clipped. With fewer, each scale is the one of least squared error (Banner et al., NeurIPS 2019,
    section 3). A channel of zeros takes the largest scale of the tensor: any would do for it, and a tiny one upsets the
    fixed-point multipliers of runtimes.

    Args:
        weight: Shape (out, …).
        bits: 2 to 8.
        per_channel: A scale for each channel, or one value for all of them.
    """
    rows = weight.detach().flatten(1).double()
    if not per_channel:
        rows = rows.reshape(1, -1)
    largest, top = rows.abs().amax(1), weight_max(bits)
    scales = largest / top
    if bits < _CLIPPED_BELOW:
        best = torch.full_like(scales, float("inf"))
        for clip in _CLIPS:
            tried = torch.clamp(largest * clip / top, min=_SMALLEST_SCALE)[:, None]
            error = ((torch.clamp(torch.round(rows / tried), -top, top) * tried - rows) ** 2).sum(1)
            scales = torch.where(error < best, tried[:, 0], scales)
            best = torch.minimum(error, best)
    scales = scales.to(torch.float32).expand(weight.shape[0]).clone()
    scales[scales < 2 * _SMALLEST_SCALE] = float(scales.max()) if float(largest.max()) > 0 else 1.0 / top
    return scales


def quantize_weight(weight: torch.Tensor, scales: torch.Tensor, bits: int = 8) -> torch.Tensor:
    """Rounds a weight to integers with the scale of each output channel; halves go to even, as in every runtime.

    Returns:
        int8, of the weight's shape, in [-(2^(bits-1) - 1), 2^(bits-1) - 1].
    """
    spread, top = scales.view(-1, *[1] * (weight.dim() - 1)), weight_max(bits)
    return torch.clamp(torch.round(weight.detach() / spread), -top, top).to(torch.int8)
