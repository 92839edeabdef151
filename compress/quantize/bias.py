"""Bias correction: what rounding shifts in a layer's mean output is given back through its bias.

Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019, section 4.2, in its
empirical form (appendix D): E[y] of the float network minus E[y] of the quantized one, per output channel. Layers are
corrected in the order of the graph, each seeing its inputs as the corrected layers before it give them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch.fx import GraphModule, Node

from edgekit.program import attribute


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
                total = _over_channels(result).sum(0, dtype=torch.float64)
                sums[n] = sums[n] + total if n in sums else total
                counts[n] += result.numel() // total.numel()
            return result

    watcher = Watcher(module)
    with torch.no_grad():
        for batch in batches:
            watcher.run(torch.from_numpy(batch))
    return {node: total / counts[node] for node, total in sums.items()}


def correct_biases(module: GraphModule, means: dict[Node, torch.Tensor], batch: np.ndarray) -> dict[Node, float]:
    """Shifts biases of a quantized graph, in place, so that each layer's mean output is the float one.

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
            bias = n.args[2] if n in means and len(n.args) > 2 else None
            if not isinstance(bias, Node) or bias.op != "get_attr" or len(bias.users) != 1:
                return result
            shift = (means[n] - _over_channels(result).mean(0, dtype=torch.float64)).to(torch.float32)
            attribute(module, str(bias.target)).data += shift
            shifts[n] = float(shift.abs().max())
            return result + (shift if n.meta["val"].dim() == 2 else shift.view(-1, *[1] * (result.dim() - 2)))

    with torch.no_grad():
        Corrector(module).run(torch.from_numpy(batch))
    return shifts


def _over_channels(value: torch.Tensor) -> torch.Tensor:
    """The value as (images and positions, channels): channels are dimension 1, of a linear layer the last."""
    if value.dim() <= 2:
        return value.reshape(-1, value.shape[-1])
    return value.movedim(1, -1).reshape(-1, value.shape[1])
