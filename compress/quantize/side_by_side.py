"""The float and the quantized network, run side by side: biases are corrected and every layer's noise measured in one pass.

Bias correction: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019, section
4.2, in its empirical form (appendix D): E[y] of the float network minus E[y] of the quantized one, per output channel, is
given back through the bias. Layers are corrected in the order of the graph, each seeing its inputs as the corrected layers
before it give them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch.fx import GraphModule, Node

from edgekit.compress.layers import own_bias
from edgekit.compress.quantize.bias import bias_scale, on_grid
from edgekit.compress.quantize.rules import RULES, Role
from edgekit.program import aten, attribute, layer_name, quantized
from edgekit.simulation import simulator
from edgekit.walk import Walk


@dataclass(frozen=True)
class LayerNoise:
    """A layer's output in the quantized network beside its output in float.

    Attributes:
        layer: Its name.
        sqnr_db: Of all its values.
        channel_sqnr_db: The median over its channels: far below ``sqnr_db`` where a few channels of large range set the
            scale, and the others drown in its step.
    """

    layer: str
    sqnr_db: float
    channel_sqnr_db: float

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def compare(
    floats: GraphModule,
    module: GraphModule,
    layers: Sequence[str],
    images: np.ndarray,
    *,
    correct: bool = False,
    batch_size: int = 32,
) -> tuple[list[LayerNoise], dict[str, float]]:
    """Measures the noise of each layer inside the quantized network, and corrects biases on the way if asked.

    What is compared is what the next layer reads: after the activation and after the output's own rounding.

    Args:
        floats: The float graph.
        module: The quantized graph made from it; nodes have the same names. Its biases change if they are corrected: to
            the nearest place on the integers' grid.
        layers: Names of nodes, of convolutions and linear layers, in the order of the graph.
        images: float32 inputs, shape (n, …). All of them are in memory with the two layers that are at work.
        correct: Shift biases so that each layer's mean output is the float one.
        batch_size: Images for each call of an operator.

    Returns:
        The noise of each layer, and for each layer whose bias was corrected the largest shift of a channel. Layers without
        a bias of their own are not.
    """
    nodes = {node.name: node for node in module.graph.nodes}
    twins = {node.name: node for node in floats.graph.nodes}
    last = {_read_by_the_next(nodes[name]).name: name for name in layers}
    counterpart = {name: _last_of(twins[name]) for name in layers}
    parts = torch.from_numpy(images).split(batch_size)
    corrected = [name for name in layers if correct and own_bias(nodes[name]) is not None]
    reference = Walk(floats, parts, [*corrected, *counterpart.values()])
    shifts: dict[str, float] = {}
    noise: dict[str, LayerNoise] = {}

    with torch.no_grad():
        for name, values in Walk(simulator(module), parts, [*corrected, *last]).steps():
            if name in corrected:
                shifts[layer_name(nodes[name])] = _correct(module, nodes[name], reference.value(name), values)
            if name in last:
                layer = last[name]
                noise[layer] = _noise(nodes[layer], reference.value(counterpart[layer]), values)
    return [noise[name] for name in layers], shifts


def _correct(module: GraphModule, node: Node, wanted: list[torch.Tensor], values: list[torch.Tensor]) -> float:
    """Moves a layer's bias, and the values that it gave already; returns the largest shift of a channel."""
    bias = attribute(module, str(own_bias(node)))
    was = bias.detach().clone()
    count = sum(value.numel() for value in values) // was.numel()
    others = _but_channels(node, values[0])
    sums = [(a - b).sum(others, dtype=torch.float64) for a, b in zip(wanted, values, strict=True)]
    mean = torch.stack(sums).sum(0) / count
    bias.data = on_grid(was + mean.to(torch.float32), bias_scale(module, node))
    shift = bias.data - was
    behind = values[0].dim() - 1 - _channels(node, values[0])
    for value in values:
        value += shift.view(-1, *[1] * behind)
    return float(shift.abs().max())


def _noise(node: Node, wanted: list[torch.Tensor], values: list[torch.Tensor]) -> LayerNoise:
    others = _but_channels(node, values[0])

    def power(tensors: Iterable[torch.Tensor]) -> np.ndarray:
        total: np.ndarray = sum((t * t).sum(others).double() for t in tensors).numpy()  # type: ignore[union-attr]
        return total

    signal, error = power(wanted), power(a - b for a, b in zip(wanted, values, strict=True))
    per_channel = _decibels(signal, error)[signal > 0]
    median = float(np.median(per_channel)) if len(per_channel) else 0.0
    return LayerNoise(layer_name(node), float(_decibels(signal.sum(), error.sum())), median)


def _decibels(signal: Any, noise: Any) -> Any:
    return 10 * np.log10(np.maximum(signal, 1e-30) / np.maximum(noise, 1e-30))


def _channels(node: Node, value: torch.Tensor) -> int:
    """The dimension of a layer's channels in its output: the last of a linear layer's, whatever stands before it."""
    return value.dim() - 1 if node.target is aten.linear.default else 1


def _but_channels(node: Node, value: torch.Tensor) -> list[int]:
    return [dimension for dimension in range(value.dim()) if dimension != _channels(node, value)]


def _read_by_the_next(node: Node) -> Node:
    """The dequantize node behind a layer of the quantized graph, or the layer's last node if there is none."""
    for _ in range(3):
        users = list(node.users)
        if len(users) != 1 or users[0].op != "call_function" or not _passes_on(users[0]):
            break
        node = users[0]
    return node


def _last_of(twin: Node) -> str:
    """The name of the float node whose value the same is: the activation behind the layer where it is fused."""
    users = list(twin.users)
    if len(users) == 1 and RULES.get(users[0].target) is Role.FUSED:
        return str(users[0].name)
    return str(twin.name)


def _passes_on(node: Node) -> bool:
    pair = (quantized.quantize_per_tensor.default, quantized.dequantize_per_tensor.default)
    return node.target in pair or RULES.get(node.target) is Role.FUSED
