"""What each operator becomes in an integer network: one line per operator.

``COMPUTE`` has a weight that is quantized too. ``OWN_RANGE`` takes and gives int8, its output has a scale of its own.
``SAME_RANGE`` hands int8 values on, so that output and input share one scale (TFLite demands it of concatenation, too).
``FUSED`` is an activation that runtimes compute inside the operator before it. An operator that is not listed stays in
float: its inputs are dequantized, and the report names it.
"""

from __future__ import annotations

import enum
import operator
from typing import Any

from edgekit.program import aten


class Role(enum.Enum):
    """How an operator takes part in an integer network."""

    COMPUTE = "compute"
    OWN_RANGE = "own range"
    SAME_RANGE = "same range"
    FUSED = "fused"


RULES: dict[Any, Role] = {
    **dict.fromkeys((aten.conv1d.default, aten.conv2d.default, aten.linear.default), Role.COMPUTE),
    **dict.fromkeys(
        (
            aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.mean.dim, aten.avg_pool2d.default,
            aten.adaptive_avg_pool2d.default, aten.sigmoid.default, aten.tanh.default, aten.hardswish.default,
            aten.hardsigmoid.default, aten.leaky_relu.default, aten.upsample_bilinear2d.vec,
        ),
        Role.OWN_RANGE,
    ),
    **dict.fromkeys(
        (
            aten.max_pool2d.default, aten.view.default, aten.reshape.default, aten.flatten.using_ints,
            aten.permute.default, aten.transpose.int, aten.slice.Tensor, aten.pad.default, aten.squeeze.dim,
            aten.squeeze.dims, aten.unsqueeze.default, aten.cat.default, aten.upsample_nearest2d.vec,
            aten.split_with_sizes.default, aten.split.Tensor, aten.chunk.default, operator.getitem,
            aten.contiguous.default, aten.clone.default,
        ),
        Role.SAME_RANGE,
    ),
    **dict.fromkeys((aten.relu.default, aten.relu6.default, aten.hardtanh.default, aten.clamp.default), Role.FUSED),
}  # fmt: skip

# Scale and zero point of what these give, by the bits of activations: TFLite's specification of integer operators knows one
# grid for each, and LiteRT refuses files with another. It has no logarithm of a softmax in 16 bits.
FIXED: dict[int, dict[Any, tuple[float, int]]] = {
    8: {
        aten.sigmoid.default: (1 / 256, -128),
        aten.softmax.int: (1 / 256, -128),
        aten.tanh.default: (1 / 128, 0),
        aten.log_softmax.int: (16 / 256, 127),
    },
    16: dict.fromkeys((aten.sigmoid.default, aten.softmax.int, aten.tanh.default), (1 / 32768, 0)),
}

# Operators that runtimes merge with an activation behind them.
FUSES_ACTIVATION = {aten.conv1d.default, aten.conv2d.default, aten.linear.default, aten.add.Tensor}
