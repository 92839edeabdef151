"""Bias correction: what rounding shifts in a layer's mean output is given back through its bias.

Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019, section 4.2, in its
empirical form (appendix D): E[y] of the float network minus E[y] of the quantized one, per output channel. Layers are
corrected in the order of the graph, each seeing its inputs as the corrected layers before it give them.

Integer kernels hold the bias as int32 with scale s_x s_w (Jacob et al., CVPR 2018, equation 7), so that is where it is put:
were it rounded by the exporters alone, the simulation would differ from the device. On ResNet-20 that was every third output.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch.fx import GraphModule, Node

from edgekit.compress.quantize.rules import RULES, Role
from edgekit.program import attribute, quantized


def output_means(module: GraphModule, nodes: Iterable[Node], batches: Iterable[np.ndarray]) -> dict[Node, torch.Tensor]:
    """Mean output per channel of convolutions and linear layers, over all images and positions.

    Args:
        module: The float graph.
        nodes: Its layers.
        batches: float32 inputs, shape (n, …).

    Returns:
        float64, shape (channels,), for each layer.
    """
    watched = set(nodes)
    sums: dict[Node, torch.Tensor] = {}
    counts: dict[Node, int] = dict.fromkeys(watched, 0)

    class Watcher(torch.fx.Interpreter):
        def run_node(self, n: Node) -> Any:
            result = super().run_node(n)
            if n in watched:
                total = result.sum(_but_channels(result), dtype=torch.float64)
                sums[n] = sums[n] + total if n in sums else total
                counts[n] += result.numel() // total.numel()
            return result

    watcher = Watcher(module)
    with torch.no_grad():
        for batch in batches:
            watcher.run(torch.from_numpy(batch))
    return {node: total / counts[node] for node, total in sums.items()}


def correct_biases(module: GraphModule, means: dict[Node, torch.Tensor], batch: np.ndarray) -> dict[Node, float]:
    """Shifts biases of a quantized graph, in place, so that each layer's mean output is the float one, and rounds them.

    Args:
        module: The graph with its quantize/dequantize nodes, made of the one that the means were taken of.
        means: What :func:`output_means` gave.
        batch: float32 inputs, shape (n, …); the same images as for the means, or a part of them.

    Returns:
        For each corrected layer the largest shift of a channel. Layers without a bias of their own are left alone.
    """
    shifts: dict[Node, float] = {}

    class Corrector(torch.fx.Interpreter):
        def run_node(self, n: Node) -> Any:
            result = super().run_node(n)
            name = own_bias(n) if n in means else None
            if name is None:
                return result
            bias = attribute(module, name)
            was = bias.detach().clone()
            bias.data += (means[n] - result.mean(_but_channels(result), dtype=torch.float64)).to(torch.float32)
            bias.data = on_grid(bias.data, bias_scale(module, n))
            shift = bias.data - was
            shifts[n] = float(shift.abs().max())
            return result + (shift if n.meta["val"].dim() == 2 else shift.view(-1, *[1] * (result.dim() - 2)))

    with torch.no_grad():
        Corrector(module).run(torch.from_numpy(batch))
    return shifts


def round_biases(module: GraphModule) -> None:
    """Puts every bias of an integer layer on the grid that integer kernels hold it on, in place."""
    for node in module.graph.nodes:
        name = own_bias(node)
        if name is not None:
            bias = attribute(module, name)
            bias.data = on_grid(bias.data, bias_scale(module, node))


def own_bias(node: Node) -> str | None:
    """The name of the bias of a convolution or linear layer that no other node reads."""
    bias = node.args[2] if node.target in RULES and RULES[node.target] is Role.COMPUTE and len(node.args) > 2 else None
    return str(bias.target) if isinstance(bias, Node) and bias.op == "get_attr" and len(bias.users) == 1 else None


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


def _but_channels(value: torch.Tensor) -> list[int]:
    """All dimensions but the channels, which are dimension 1, of a linear layer's output the last."""
    channels = 1 if value.dim() > 2 else value.dim() - 1
    return [dimension for dimension in range(value.dim()) if dimension != channels]
