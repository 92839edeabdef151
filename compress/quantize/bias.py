"""Where the biases of an integer network lie.

Integer kernels hold the bias as int32 with scale s_x s_w (Jacob et al., CVPR 2018, equation 7), so that is where it is put:
were it rounded by the exporters alone, the simulation would differ from the device. On ResNet-20 that was every third output.
"""

from __future__ import annotations

import torch
from torch.fx import GraphModule, Node

from edgekit.compress.layers import own_bias
from edgekit.program import attribute, quantized


def round_biases(module: GraphModule) -> None:
    """Puts every bias of an integer layer on the grid that integer kernels hold it on, in place."""
    for node in module.graph.nodes:
        name = own_bias(node)
        if name is not None:
            bias = attribute(module, name)
            bias.data = on_grid(bias.data, bias_scale(module, node))


def bias_scale(module: GraphModule, node: Node) -> torch.Tensor | None:
    """s_x s_w of each output channel, the product in float32 as runtimes form it; None where input or weight is float."""
    x, weight = node.args[0], node.args[1]
    if not (isinstance(x, Node) and isinstance(weight, Node)):
        return None
    if (
        x.target is not quantized.dequantize_per_tensor.default
        or weight.target is not quantized.dequantize_per_channel.default
    ):
        return None
    return torch.tensor(float(x.args[1]), dtype=torch.float32) * attribute(module, str(weight.args[1].target))  # type: ignore[arg-type,union-attr]


def on_grid(bias: torch.Tensor, scale: torch.Tensor | None) -> torch.Tensor:
    """The nearest multiples of the scale; a bias that int32 can't hold stays as it is, and in float."""
    if scale is None:
        return bias
    steps = torch.round(bias.double() / scale.double())
    if float(steps.abs().max()) > 2**31 - 1:
        return bias
    return (steps * scale.double()).to(bias.dtype)
