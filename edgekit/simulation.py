"""Running a quantized program on this machine at the speed of a float one: the same values, bit for bit.

The operators that stand for rounding in a program (``quantized_decomposed``) are a reference: each pair of them takes
many times as long as the arithmetic that it stands for. Whoever runs a program over many images runs its simulator.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch.fx import GraphModule, Node

from edgekit.program import attribute, quantized, quiet


def simulator(module: GraphModule) -> GraphModule:
    """A graph that computes what a quantized graph computes, faster.

    A quantize/dequantize pair becomes one operator with the name of the second, and int8 weights are dequantized once. It
    shares all its parameters with ``module``, which is not changed; a float graph gives a graph that equals it.

    Example:
        >>> import edgekit
        >>> run = simulator(edgekit.load("zoo:digits-cnn").module())
    """
    with quiet():
        graph = copy.deepcopy(module.graph)
    # What a graph reads, by name; two graphs that are given the same tensor share it.
    owned: dict[str, Any] = {}
    for node in list(graph.nodes):
        if node.target is quantized.dequantize_per_tensor.default:
            _make_one_operator(node)
        elif node.target is quantized.dequantize_per_channel.default and all(
            source.op == "get_attr" for source in node.all_input_nodes
        ):
            tensors = [attribute(module, str(source.target)) for source in node.all_input_nodes]
            with graph.inserting_before(node):
                constant = graph.get_attr(f"simulated_{node.name}")
            constant.meta = dict(node.meta)
            owned[str(constant.target)] = node.target(*tensors, *node.args[3:])  # type: ignore[operator]
            node.replace_all_uses_with(constant)
            graph.erase_node(node)
    graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
    for node in graph.nodes:
        name = str(node.target)
        if node.op in ("get_attr", "call_module") and name not in owned:
            owned[name] = attribute(module, name)
    return GraphModule(owned, graph)


def round_to_grid(x: torch.Tensor, scale: float, zero_point: int, low: int, high: int) -> torch.Tensor:
    """x' = (clamp(round(x / s) + z, low, high) - z) s, in float32 and in the order that the program's operators take."""
    levels = x * (1.0 / scale)
    return levels.round_().add_(zero_point).clamp_(low, high).sub_(zero_point).mul_(scale)


def _make_one_operator(node: Node) -> None:
    source = node.args[0]
    if (
        not isinstance(source, Node)
        or source.target is not quantized.quantize_per_tensor.default
        or source.args[1:] != node.args[1:]
    ):
        return
    value, scale, zero_point, low, high, _ = source.args
    node.target = round_to_grid
    node.args = (value, scale, zero_point, low, high)
