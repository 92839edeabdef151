"""A program rewritten for a precision of :class:`~edgekit.runtimes.torch.TorchSettings`; runs where edgekit is installed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from edgekit.program import aten, attribute, layer_name, quantized, set_attribute, shape_of

from .runtime import RunError

DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32, "tf32": torch.float32, "int8": torch.float32, "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}  # fmt: skip
"""What a program's inputs are for each precision."""

_PER_TENSOR = (quantized.quantize_per_tensor.default, quantized.dequantize_per_tensor.default)
_WEIGHTS = (quantized.dequantize_per_channel.default, quantized.dequantize_per_tensor.default)
_LAYERS = (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default, aten.linear.default)


def prepared(module: GraphModule, precision: str, compiled: bool) -> GraphModule:
    """The program as it computes in a precision; changed in place.

    Args:
        module: The program.
        precision: One of :data:`DTYPES`.
        compiled: Inductor will compile it.

    Raises:
        RunError: If the program can't be computed in it.
    """
    if precision == "int8":
        if not integer_layers(module):
            raise RunError(
                "precision=int8 computes a quantized bundle in integers, and no layer of this one has quantized inputs and "
                "weights; run `edgekit compress … --step quantize` first"
            )
        _to_unsigned(module)
    elif precision != "float32" and is_quantized(module):
        raise RunError(
            f"precision={precision} is for float bundles, and this one is quantized; take precision=int8, or float32, which "
            "simulates it"
        )
    elif compiled and integer_layers(module):
        # Inductor takes Q/DQ around a layer for a wish to compute in integers, and then refuses int8 activations at the run.
        raise RunError("compile=true computes a quantized bundle in integers, or not at all: take precision=int8")
    elif DTYPES[precision] != torch.float32:
        _cast(module, DTYPES[precision])
    _views_to_reshapes(module)
    return module


def move(module: GraphModule, device: str) -> GraphModule:
    """Moves weights to a device, and what the graph itself makes: an export writes the device into such nodes."""
    module.to(device)
    chosen = torch.device(device)

    def moved(value: Any) -> Any:
        return chosen if isinstance(value, torch.device) else value

    _replace(module, moved)
    return module


def _replace(module: GraphModule, change: Callable[[Any], Any]) -> None:
    """Changes the arguments of every node."""
    for node in module.graph.nodes:
        if node.op == "call_function":
            node.args = pytree.tree_map(change, node.args)
            node.kwargs = pytree.tree_map(change, node.kwargs)
    module.recompile()


def is_quantized(module: GraphModule) -> bool:
    """Whether a program holds quantized values."""
    return any(node.target in (*_PER_TENSOR, *_WEIGHTS) for node in module.graph.nodes)


def integer_layers(module: GraphModule) -> list[tuple[str, int]]:
    """The layers with int8 inputs and int8 weights: what to call each, and its number of weights."""
    found = []
    for node in module.graph.nodes:
        if node.target not in _LAYERS:
            continue
        x, weight = node.args[:2]
        if x.target is _PER_TENSOR[1] and x.args[5] in (torch.int8, torch.uint8) and weight.target in _WEIGHTS:
            found.append((layer_name(node), math.prod(shape_of(weight))))
    return found


def _to_unsigned(module: GraphModule) -> None:
    """Moves int8 activations to uint8, the zero point with them: the same values, and what oneDNN's integer kernels take."""
    for node in module.graph.nodes:
        if node.target in _PER_TENSOR and node.args[5] == torch.int8 and node.args[0].op != "get_attr":
            x, scale, zero_point, low, high = node.args[:5]
            node.args = (x, scale, zero_point + 128, low + 128, high + 128, torch.uint8)
    module.recompile()


def _cast(module: GraphModule, dtype: torch.dtype) -> None:
    """Casts every weight and every type that the graph names; batch norm's own numbers stay as they are."""
    kept = {
        str(argument.target)
        for node in module.graph.nodes
        if node.target is aten.batch_norm.default
        for argument in node.args[1:5]
        if isinstance(argument, Node)
    }
    named = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    for name in named - kept:
        value = attribute(module, name)
        if value.dtype == torch.float32:
            changed = value.to(dtype)
            parameter = isinstance(value, torch.nn.Parameter)
            set_attribute(module, name, torch.nn.Parameter(changed, requires_grad=False) if parameter else changed)

    def narrowed(value: Any) -> Any:
        return dtype if value is torch.float32 else value

    _replace(module, narrowed)


def _views_to_reshapes(module: GraphModule) -> None:
    """A view of the shape alone does not exist for every memory format; a reshape is one where it does."""
    for node in module.graph.nodes:
        if node.target is aten.view.default:
            node.target = aten.reshape.default
    module.recompile()
